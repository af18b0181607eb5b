"""What went wrong, in one line: messages without their decoration, lists without their length."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_logger = logging.getLogger(__name__)


def one_line(error: BaseException) -> str:
    """Returns the message of ``error`` on one line.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "a.yaml"))
        'a.yaml: No such file or directory'
    """
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if "Original Traceback" in text:  # raised in a process of a data loader
        text = re.sub(r"^\w*(Error|Exception): ", "", text.strip().splitlines()[-1])
    return " ".join(text.split())


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of ``error`` that isn't empty: torch's errors go on for a page."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def few(names: Sequence[str], shown: int = 3) -> str:
    """Lists the first names of what may be long.

    Example:
        >>> few(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def by_reason(word: str, skipped: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason in ``skipped`` (name: reason), with the first names."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name)
    return [f"  {word}, {reason}: {few(names)}" for reason, names in reasons.items()]


def counted(number: int, noun: str) -> str:
    """Returns a number of things, "1 image" or "2,000 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def require_at_least(options: Any, dashes: str = "", /, **least: float) -> None:
    """Raises ValueError for an attribute of ``options`` that is below its least value; None is none.

    With ``dashes``, it is named as an option of the command line.
    """
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not value >= low:
            shown = dashes + name.replace("_", "-") if dashes else name.removeprefix("_")
            raise ValueError(f"{shown} is {value}; it must be at least {low}")


def first_process() -> bool:
    """Returns whether this is the first of a training's processes, or the only one."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def tell(line: str) -> None:
    """Logs a line that the user should read, in the first of a training's processes only."""
    if first_process():
        _logger.warning("%s", line)


def described(value: object) -> str:
    """Says what a value that should have been a tensor is: "a tuple of 2", "a dict of 3", "a value of type int"."""
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def differing(first: Sequence[str], second: Sequence[str], shown: int = 12) -> tuple[str, str]:
    """Describes two lists of classes, whole where they are short, else from where they first differ.

    Returns:
        Each as "3 classes (cat, dog, eel)"; where longer, "1000 classes (from 8 on: crane, drake, eel and 990 more)".
    """
    shortest, longest = sorted((len(first), len(second)))
    at = next((i for i in range(shortest) if first[i] != second[i]), shortest) if longest > shown else 0

    def around(names: Sequence[str]) -> str:
        rest = few(names[at:], shown if longest <= shown else 3) or "none"
        return f"{len(names)} classes ({f'from {at} on: ' if at else ''}{rest})"

    return around(first), around(second)


def printable(text: str) -> str:
    """Escapes what a terminal would obey or can't show: names come from strangers.

    Example:
        >>> printable("é 1\\x1b[31m")
        'é 1\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
