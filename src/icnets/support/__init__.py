"""What every other package may use: files, text, tables, and running a network without leaving a trace in it."""
