"""Training with Lightning: the task, the optimizers, the callbacks and the checkpoints of a run."""
