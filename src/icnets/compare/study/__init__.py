"""Studies: a grid of networks, methods and seeds on one data set, kept as lines; tables and figures made from these."""
