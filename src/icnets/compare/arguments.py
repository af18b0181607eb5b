"""jsonargparse for the evaluation's programs: what it can't parse becomes a ValueError of one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from icnets.training.allowed_imports import allowed_imports
from icnets.training.config_errors import explained, of_configuration

__all__ = ["parse"]


def parse(parser: Any, argv: Sequence[str] | None) -> Any:
    """The parsed namespace, dataclasses instantiated. ``--help`` prints and exits as usual.

    Raises:
        ValueError: one line with the reason, in the place of jsonargparse's usage text; a file that is no
            configuration; or a class that the configuration may not name.
    """
    # The method got a new name in jsonargparse 4.49.
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    try:
        with allowed_imports(remedy="remove it"):
            with of_configuration():
                parsed = parser.parse_args(argv)
            return instantiate(parsed)
    except argparse.ArgumentError as error:
        raise ValueError(explained(error)) from error
