"""Files that are whole or not there: written beside their place, flushed to the disk, then moved into it."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a new path beside ``path`` to write to, which takes the place of ``path`` when the block ends.

    If the block raises, what it wrote is removed and ``path`` stays as it was. The folder must exist.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # another process may write the same file
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # the writer may have made it private, as safetensors does
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Replaces ``target`` by ``source``, in the same file system, once its bytes are on the disk."""
    with open(source, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def write_json(content: Any, path: Path) -> None:
    """Writes ``content`` as JSON to ``path``, at once or not at all; its folder is made if missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json({"top1": 0.9}, Path(folder, "new", "test.json"))
        ...     Path(folder, "new", "test.json").read_text()
        '{"top1": 0.9}\\n'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_unfinished(folder: Path) -> None:
    """Removes what :func:`atomic_write` left in ``folder`` when a process was killed.

    No other process may be writing there. Also removed are the hidden files that safetensors writes meanwhile, each as
    large as the network.
    """
    for path in folder.glob(".*"):
        if path.suffix == ".tmp" or _OF_SAFETENSORS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Returns the user's cache folder for what is built on this machine; ``ICNETS_CACHE`` names another."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "icnets")
    return Path(os.environ.get("ICNETS_CACHE") or usual)
