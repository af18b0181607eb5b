"""The program ``icnets``: one module for each command."""

from icnets.cli.app import main

__all__ = ["main"]
