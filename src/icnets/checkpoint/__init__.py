"""Checkpoints: a network's weights in safetensors, with what rebuilds the network in the file's header."""

from icnets.checkpoint.safetensors_file import CheckpointError, UnknownNetworkError, load, load_with_notes, read, save

__all__ = ["CheckpointError", "UnknownNetworkError", "load", "load_with_notes", "read", "save"]
