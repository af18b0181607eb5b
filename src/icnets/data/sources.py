"""Where encoded images come from: files of a folder, tar shards (local or remote), or a Hugging Face dataset."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from icnets.support.text import first_line


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


class HuggingFace:
    """A split of a Hugging Face dataset, by timm's reader.

    Args:
        name: on the hub, or a local folder that ``datasets.load_dataset`` takes.
        split: such as train or validation.

    Raises:
        ValueError: no such dataset or split, or it has no column of images or of classes.
    """

    def __init__(self, name: str, split: str) -> None:
        from timm.data.readers.reader_factory import create_reader

        try:
            self.reader: Any = create_reader(f"hfds/{name}", root=None, split=split)
            self.targets = [int(label) for label in self.reader.dataset[self.reader.label_key]]
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError):
                raise
            raise ValueError(f"can't read split {split!r} of the dataset {name!r}: {first_line(error)}") from error
        index_of: dict[str, int] = self.reader.class_to_idx
        self.class_names = sorted(index_of, key=index_of.__getitem__)
        self.label = f"{name}, {split}"

    def __len__(self) -> int:
        return len(self.targets)

    def open(self, index: int) -> BinaryIO:
        file: BinaryIO = self.reader[index][0]
        return file

    def name(self, index: int) -> str:
        return f"image {index} of {self.label}"
