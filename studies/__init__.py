"""Our research: data sets, networks and an experiment that are no user's tool; recipes name them by import path."""
