"""Artifacts for other engines, each reloaded and compared with PyTorch before it is announced."""
