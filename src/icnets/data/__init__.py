"""Images and labels: sources, splits, augmentation, the order of samples, and the data module for Lightning."""
