"""Where encoded images come from: files of a folder, or tar shards."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol


class Source(Protocol):
    """Encoded images by index; pickled to the processes that read."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> BinaryIO | Path:
        """Return the bytes of an image, as an open file or as the path of one."""
        ...

    def name(self, index: int) -> str:
        """Return what to call the image where it is reported."""
        ...


class Paths:
    """Image files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Path:
        return self.paths[index]

    def name(self, index: int) -> str:
        return os.fsencode(self.paths[index]).decode("utf-8", "backslashreplace")  # whatever bytes it is made of
