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
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import numpy as np

from icnets.data.cache import cached
from icnets.data.image_files import image_extensions
from icnets.support.text import few, first_line, tell

LABELS = ("cls", "json")  # extensions of what holds a class
_USUAL = ("jpg", "jpeg", "png", "webp")  # of several images of a key, the one that is meant
_LONGEST_LABEL = 1 << 20  # bytes


def expand(pattern: str) -> list[str]:
    """Expand a pattern with braces, ``train-{000..002}.tar`` or ``{a,b}.tar``, to names in order."""
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
    """List the shards of a split, ``root/SPLIT/*.tar`` or ``root/SPLIT*.tar``, sorted; perhaps none."""
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
        indices = [cached(cache, f"shard-{_digest(shard)}", partial(_index, shard)) for shard in self.shards]
        counts = [len(index["offsets"]) for index in indices]
        self._shard = np.repeat(np.arange(len(counts)), counts)
        self._offsets, self._sizes, targets = (
            np.concatenate([index[column] for index in indices]) for column in ("offsets", "sizes", "targets")
        )
        self.targets: list[int] = targets.tolist()
        ends = np.cumsum(counts).tolist()
        self.groups = list(zip([0, *ends[:-1]], ends, strict=True))
        counts_left = Counter(kind for index in indices for kind in index["left_out"].tolist())
        if counts_left:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts_left.items()))
            tell(f"{few(self.shards, 1)}: left out samples without an image that is read: {kinds}")

    def __len__(self) -> int:
        return len(self.targets)

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self._read(index, int(self._offsets[index]), int(self._sizes[index])))

    def name(self, index: int) -> str:
        header = self._read(index, int(self._offsets[index]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        member = header[:100].rstrip(b"\0").decode(errors="replace")
        return f"{self.shards[int(self._shard[index])]}: {member}"

    def _read(self, index: int, offset: int, size: int) -> bytes:
        shard = self.shards[int(self._shard[index])]
        if _is_remote(shard):
            system, path = fsspec.core.url_to_fs(shard)
            content: bytes = system.cat_file(path, start=offset, end=offset + size)
        else:
            with open(shard, "rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise OSError(f"{shard} has become shorter: {len(content)} bytes at {offset} where there were {size}")
        return content


def _is_remote(shard: str) -> bool:
    return "://" in shard


def _digest(shard: str) -> str:
    """Return what changes when the shard does."""
    if _is_remote(shard):
        try:
            system, path = fsspec.core.url_to_fs(shard)
            state = f"{shard} {system.info(path).get('size')}"
        except Exception as error:
            raise ValueError(f"can't open the shard {shard}: {first_line(error)}") from error
    elif not Path(shard).is_file():
        raise ValueError(f"there is no shard {shard}")
    else:
        status = Path(shard).stat()
        state = f"{Path(shard).resolve()} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(f"2 {state}".encode()).hexdigest()[:24]


def _index(shard: str) -> dict[str, np.ndarray]:
    """Read offsets, sizes and classes of a shard's images, and what the other samples have in place of an image.

    Members of one key need not be neighbours.
    """
    members, found = read_members(shard)
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: not member.is_image):  # in the order of the images
        groups.setdefault(member.key, []).append(member)
    rows, left_out = [], []
    for group in groups.values():
        images, label, wrong = read_sample(group)
        if images:
            found += wrong
            rows += [(image.info.offset_data, image.info.size, label) for image in images]
        elif any(member.suffix in LABELS for member in group):
            found += [one for one in wrong if one[1] == "bad-label"]
            others = (member.suffix for member in group if member.suffix not in LABELS)
            left_out.append(next((f".{s}" if s else "without an extension" for s in others), "of a class alone"))
    if fatal := [one for one in found if one[1] != "link"]:
        name, _, reason = fatal[0]
        where = f"{name!r} in the shard {shard}" if name else f"the shard {shard} is damaged or no tar file"
        more = f" (and {len(fatal) - 1} more problems; icnets data check lists them all)" if len(fatal) > 1 else ""
        raise ValueError(f"{where}: {reason}{more}")
    if not rows:
        what = f": {few(left_out)}" if left_out else ""
        raise ValueError(f"the shard {shard} holds no images ({', '.join(_USUAL)}, ...){what}")
    columns = dict(zip(("offsets", "sizes", "targets"), np.array(rows, dtype=np.int64).T, strict=True))
    return {**columns, "left_out": np.array(left_out, dtype=str)}


class Member(NamedTuple):
    """A file in a shard: its header, key and extension; whether that is read as an image; the content of a label."""

    info: tarfile.TarInfo
    key: str
    suffix: str
    is_image: bool
    label: bytes


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension in lower case: "a/0001.Seg.png" -> ("a/0001", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


Found = tuple[str, str, str]  # name of a member, kind of the problem as icnets data check has it, and the details


def read_members(shard: str) -> tuple[list[Member], list[Found]]:
    """Read the headers and labels of a shard, but no images; nothing is unpacked.

    Returns:
        The files, and what is wrong: members of other kinds, and last, without a name, that the shard is damaged.
    """
    members: list[Member] = []
    found: list[Found] = []
    extensions = image_extensions()
    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                key, suffix = split_key(info.name)
                if leads_out(info.name):
                    found.append((info.name, "unsafe-name", "leads out of its folder"))
                elif info.issym() or info.islnk():
                    found.append((info.name, "link", f"a link to {info.linkname}"))
                elif info.isfile():
                    label: Any = archive.extractfile(info) if suffix in LABELS else io.BytesIO()
                    members.append(
                        Member(info, key, suffix, f".{suffix}" in extensions, label.read(_LONGEST_LABEL + 1))
                    )
                elif not info.isdir():
                    found.append((info.name, "link", "a device or the like"))
            _require_end(archive)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        found.append(("", "shard-damaged", " ".join(str(error).split()) or type(error).__name__))
    return members, found


def _require_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError without a block of zeros at the end; tarfile takes damaged headers and a cut for the end too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off at byte {archive.offset:,}")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {archive.offset:,} is damaged")


def leads_out(name: str) -> bool:
    """Whether a member so named would be unpacked outside its folder, on any system."""
    name = name.replace("\\", "/")
    return name.startswith("/") or ".." in name.split("/")


def read_sample(group: Sequence[Member]) -> tuple[list[Member], int | None, list[Found]]:
    """Read the members of one key.

    Returns:
        The images, of which only one should be there; the class, or None; and what is wrong.
    """
    images = [member for member in group if member.is_image]
    images = [member for member in images if member.suffix in _USUAL] or images
    labels = [member for kind in LABELS for member in group if member.suffix == kind]
    found = [(member.info.name, "repeated-key", f"key {member.key} has an image already") for member in images[1:]]
    label = None
    if labels:
        try:
            label = class_index(labels[0])
        except ValueError as error:
            found.append((labels[0].info.name, "bad-label", str(error)))
    if images and not labels:
        found.append((images[0].info.name, "no-partner", "no .cls or .json beside the image"))
    elif labels and not images:
        found.append((labels[0].info.name, "no-partner", "no image beside the class"))
    elif not images:
        found.append((group[0].info.name, "not-image", "neither image nor class"))
    return images, label, found


def class_index(member: Member) -> int:
    """Return the class in a ``cls``, plain digits, or ``json``, {"label": index}; ValueError says what is wrong."""
    if member.info.size > _LONGEST_LABEL:
        raise ValueError(f"it has {member.info.size:,} bytes, too many for a class")
    text = member.label.decode("utf-8", "replace").strip()
    if member.suffix == "json":
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
