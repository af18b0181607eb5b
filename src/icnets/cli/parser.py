"""The parser of the commands that have their own arguments."""

import argparse
from typing import NoReturn

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ValueErrors, which ``main`` reports in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
