"""The file of finished runs: one JSON object per line, appended as runs finish, so that what was done stays done."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from icnets.support.files import atomic_write

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a file; a last one that was cut off by the end of its process doesn't count. No file: no lines.

    Raises:
        ValueError: another line is not a JSON object with a kind.
    """
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    found = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"line {number} of {path} is damaged ({error})"
            raise ValueError(f"{what}; remove it, and its run is done anew") from None
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError(f"line {number} of {path} is no line of a comparison; is it another file?")
        found.append(value)
    return found


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def append(path: Path, line: Line) -> None:
    """Adds a line, in one write, and waits until it is on the disk."""
    with open(path, "ab", buffering=0) as file:
        file.write(_text(line).encode())
        os.fsync(file.fileno())


def rewrite(path: Path, lines: Iterable[Line]) -> None:
    """Replaces the file by these lines, at once or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text("".join(_text(line) for line in lines), encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process that asks for it has the lock meanwhile; it ends with the process, however that ends.

    Raises:
        ValueError: another process has it.
    """
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout:
        what = f"another process is at work on this comparison ({path} is locked)"
        raise ValueError(f"{what}; wait for its end") from None
    with lock:
        yield
