"""Checkpoints: a network's weights in safetensors, with what rebuilds the network in the file's header."""

from icnets.checkpoint.safetensors_file import CheckpointError, load, load_with_notes, read, save

__all__ = ["CheckpointError", "load", "load_with_notes", "read", "save"]
