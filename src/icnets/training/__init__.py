"""Training with Lightning: the data, the task, the callbacks and the command line's fit, validate, test and predict."""
