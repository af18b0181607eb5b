"""The network: which layers become IC units, in place, and how a trained network keeps its function."""
