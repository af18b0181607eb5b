"""``icnets predict MODEL PATHS``: the classes of image files, by a checkpoint or by an exported artifact."""
