"""argparse's parser, whose errors are a ValueError of one line."""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

from icnets.support.gone import instead_of

_UNKNOWN = re.compile(
    r"unrecognized arguments: (--[^\s=]+).*|unknown option (?P<known>\S+)"
    r"|(?:Option|Group '(?P<group>.+)' does not accept option) '(?P<name>.+?)'.*",
    re.DOTALL,
)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; ``main`` reports its errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise ValueError(with_hint(message, self))


def with_hint(message: str, parser: argparse.ArgumentParser) -> str:
    """The parser's ``message``; of an unknown option it says which one was probably meant.

    Example:
        >>> parser = Parser(prog="icnets predict")
        >>> option = parser.add_argument("--top-k")
        >>> with_hint("unrecognized arguments: --topk 3", parser)
        'unknown option --topk; did you mean --top-k?'
    """
    found = _UNKNOWN.fullmatch(message)
    if found is None:
        return message
    name = found[1] or found["known"] or ".".join(filter(None, (found["group"], found["name"])))
    if (gone := instead_of(name)) is not None:
        return gone
    dashes = "--" if name.startswith("--") else ""  # a key of a configuration has none
    known = [option.replace("--", dashes, 1) for option in parser._option_string_actions]
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")


def require_folder_of(path: Path | None, option: str) -> None:
    """Raises ValueError for an output whose folder doesn't exist."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} of {option} doesn't exist; create it first")


def require_new(path: Path, option: str, force: bool) -> None:
    """Raises ValueError for an output that exists and isn't to be replaced."""
    if path.exists() and not force:
        raise ValueError(f"{path} exists already; give another {option}, or --force")
