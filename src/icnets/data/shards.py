"""Tar shards in WebDataset's layout, local or behind a URL, read at any place and never unpacked.

A sample is ``KEY.jpg`` (or another extension of Pillow's) beside ``KEY.cls``, its class index as text, or ``KEY.json``
with ``{"label": index}``. Every shard is read once from end to end, for where its images lie; that is kept in a cache.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from icnets.data.image_files import image_extensions
from icnets.support.files import atomic_write
from icnets.support.text import few, first_line, tell

__all__ = [
    "LONGEST_LABEL",
    "Shards",
    "class_index",
    "expand",
    "find_shards",
    "is_image",
    "leads_out",
    "meant",
    "require_end",
    "split_key",
]

_OPEN = 64  # files at a time; a process may have 1,024, and there may be more shards
_USUAL = ("jpg", "jpeg", "png", "webp")  # of several images of a key, the one that is meant
LONGEST_LABEL = 1 << 20  # bytes


@dataclass(frozen=True)
class _Index:
    """Offsets, sizes and classes of a shard's images; what the other samples have in the place of an image."""

    offsets: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray
    left_out: np.ndarray


def expand(pattern: str) -> list[str]:
    """Names for a pattern with braces: ``train-{000..002}.tar`` and ``{a,b}.tar``, in order."""
    parts: list[list[str]] = []
    for part in re.split(r"(\{[^{}]*\})", pattern):
        numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
        if numbers:
            first, last = numbers.groups()
            parts.append([str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)])
        elif part.startswith("{"):
            parts.append(part[1:-1].split(","))
        else:
            parts.append([part])
    return ["".join(combination) for combination in product(*parts)]


def find_shards(root: Path, split: str) -> list[str]:
    """The shards of a split in ``root``: ``root/SPLIT/*.tar`` or ``root/SPLIT*.tar``, sorted; perhaps none."""
    found = (root / split).glob("*.tar") if (root / split).is_dir() else root.glob(f"{split}*.tar")
    return sorted(str(path) for path in found)


class Shards:
    """The images of tar shards.

    Args:
        shards: paths or URLs (https, s3, gs, hf: whatever fsspec opens).
        cache: folder that keeps where the images lie.

    Attributes:
        targets: class index of each image.
        groups: for each shard, its first image and the one behind its last.

    Raises:
        ValueError: a shard that is missing, damaged or truncated, or has an image without a class, a class that is no
            number, or a member whose name leads out of its folder.
    """

    def __init__(self, shards: Sequence[str], cache: Path) -> None:
        self.shards = list(shards)
        indices = [_cached_index(shard, cache) for shard in self.shards]
        counts = [len(index.offsets) for index in indices]
        self._shard = np.repeat(np.arange(len(counts)), counts)
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self.targets: list[int] = np.concatenate([index.targets for index in indices]).tolist()
        ends = np.cumsum(counts).tolist()
        self.groups = list(zip([0, *ends[:-1]], ends, strict=True))
        self._files: dict[str, BinaryIO] = {}
        self._remote: dict[str, tuple[Any, str]] = {}
        counts_left = Counter(kind for index in indices for kind in index.left_out.tolist())
        if counts_left:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts_left.items()))
            tell(f"{few(self.shards, 1)}: left out samples without an image that is read: {kinds}")

    def __len__(self) -> int:
        return len(self.targets)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}, "_remote": {}}  # every process opens its own

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self._read(index, int(self._offsets[index]), int(self._sizes[index])))

    def name(self, index: int) -> str:
        header = self._read(index, int(self._offsets[index]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        member = header[:100].rstrip(b"\0").decode(errors="replace")
        return f"{self.shards[int(self._shard[index])]}: {member}"

    def _read(self, index: int, offset: int, size: int) -> bytes:
        shard = self.shards[int(self._shard[index])]
        if is_remote(shard):
            system, path = self._place(shard)
            content: bytes = system.cat_file(path, start=offset, end=offset + size)
        else:
            content = os.pread(self._file(shard).fileno(), size, offset)
        if len(content) != size:
            raise OSError(f"{shard} has become shorter: {len(content)} bytes at {offset} where there were {size}")
        return content

    def _file(self, shard: str) -> BinaryIO:
        if shard not in self._files:
            if len(self._files) == _OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[shard] = open(shard, "rb")  # noqa: SIM115  # kept, for the images to come
        return self._files[shard]

    def _place(self, shard: str) -> tuple[Any, str]:
        if shard not in self._remote:
            import fsspec

            self._remote[shard] = fsspec.core.url_to_fs(shard)
        return self._remote[shard]

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            file.close()


def is_remote(shard: str) -> bool:
    """Whether a shard is named by a URL."""
    return "://" in shard


def _state(shard: str) -> str:
    """What changes when the shard does."""
    if is_remote(shard):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(shard)
            return f"{shard} {system.info(path).get('size')}"
        except Exception as error:
            raise ValueError(f"can't open the shard {shard}: {first_line(error)}") from error
    if not Path(shard).is_file():
        raise ValueError(f"there is no shard {shard}")
    status = Path(shard).stat()
    return f"{Path(shard).resolve()} {status.st_size} {status.st_mtime_ns}"


def _cached_index(shard: str, cache: Path) -> _Index:
    path = cache / f"shard-{hashlib.sha256(f'2 {_state(shard)}'.encode()).hexdigest()[:24]}.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            return _Index(kept["offsets"], kept["sizes"], kept["targets"], kept["left_out"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none, or not a whole one
    index = _read_index(shard)
    cache.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished, open(unfinished, "wb") as output:
        np.savez(output, **vars(index))
    return index


def _read_index(shard: str) -> _Index:
    try:
        with _opened(shard) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                rows, left_out = _samples(shard, archive, file, length)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the shard {shard} is damaged or no tar file: {first_line(error)}") from error
    if not rows:
        what = f": {few(left_out)}" if left_out else ""
        raise ValueError(f"the shard {shard} holds no images ({', '.join(_USUAL)}, ...){what}")
    offsets, sizes, targets = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return _Index(offsets, sizes, targets, np.array(left_out, dtype=str))


def _opened(shard: str) -> Any:
    if not is_remote(shard):
        return open(shard, "rb")
    import fsspec

    return fsspec.open(shard, "rb")


def meant(suffixes: Sequence[str]) -> list[str]:
    """Which of the images of one key, given by their extensions, is the sample's; several where that can't be said."""
    return [suffix for suffix in suffixes if suffix in _USUAL] or list(suffixes)


def is_image(suffix: str) -> bool:
    """Whether members of that extension, without its dot, are read as images."""
    return f".{suffix}" in image_extensions()


def _samples(
    shard: str, archive: tarfile.TarFile, file: BinaryIO, length: int
) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Offset, size and class of each image, in the order of the file; what the samples without one have instead."""
    images: dict[str, dict[str, tarfile.TarInfo]] = {}
    others: dict[str, str] = {}
    classes: dict[str, int] = {}
    extensions = image_extensions()
    for member in _members(shard, archive, length):
        key, suffix = split_key(member.name)
        if f".{suffix}" in extensions:
            if suffix in images.setdefault(key, {}):
                raise ValueError(f"the shard {shard} has two images for {key!r}; its names must differ")
            images[key][suffix] = member
        elif suffix in ("cls", "json"):
            place = file.tell()
            file.seek(member.offset_data)
            try:
                if member.size > LONGEST_LABEL:
                    raise ValueError(f"it has {member.size:,} bytes, too many for a class")
                classes[key] = class_index(suffix, file.read(member.size))
            except ValueError as error:
                raise ValueError(f"{member.name!r} in the shard {shard}: {error}") from None
            file.seek(place)
        else:
            others.setdefault(key, f".{suffix}" if suffix else "without an extension")
    require_end(archive)
    if lonely := [next(iter(own.values())).name for key, own in images.items() if key not in classes]:
        raise ValueError(f"the shard {shard} has images without a class: {few(lonely)}; each needs a .cls or .json")
    rows = []
    for key, own in images.items():
        suffixes = meant(list(own))
        if len(suffixes) > 1:
            raise ValueError(f"the shard {shard} has two images for {key!r}; its names must differ")
        rows.append((own[suffixes[0]].offset_data, own[suffixes[0]].size, classes[key]))
    return rows, [others.get(key, "of a class alone") for key in classes if key not in images]


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: "a/0001.seg.png" -> ("a/0001", "seg.png"), the latter in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def require_end(archive: tarfile.TarFile) -> None:
    """Raises ReadError without a block of zeros at the end; tarfile takes damaged headers and a cut for the end too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off at byte {archive.offset:,}")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {archive.offset:,} is damaged")


def _members(shard: str, archive: tarfile.TarFile, length: int) -> Iterable[tarfile.TarInfo]:
    for member in archive:
        if not member.isfile():
            continue
        if leads_out(member.name):
            raise ValueError(f"the shard {shard} has a member {member.name!r} that leads out of its folder")
        if member.offset_data + member.size > length:
            raise ValueError(
                f"the shard {shard} is truncated: {member.name!r} ends at byte {member.offset_data + member.size}, "
                f"the file at {length}"
            )
        yield member


def leads_out(name: str) -> bool:
    """Whether a member so named would be unpacked outside its folder, on any system."""
    name = name.replace("\\", "/")
    return name.startswith("/") or ".." in name.split("/")


def class_index(suffix: str, content: bytes) -> int:
    """The class in a member ``cls``, plain digits, or ``json``, {"label": index}; ValueError says what is wrong."""
    text = content.decode("utf-8", "replace").strip()
    if suffix == "json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None
        index = value.get("label") if isinstance(value, dict) else None
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"its label is {repr(index)[:40]}; it must be a whole number")
        text = str(index)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"its class is {repr(text)[:40]}; it must be a whole number from 0, of 9 digits at most")
    return int(text)
