"""The IC unit: the sum over the receptive field, the formula, torch's layers with it, and their deployed form."""
