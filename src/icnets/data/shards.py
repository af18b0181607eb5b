"""Tar shards in WebDataset's layout, local or behind a URL, read at any place and never unpacked.

A sample is ``KEY.jpg`` (or another extension of Pillow's) beside ``KEY.cls``, its class index as text, or ``KEY.json``
with ``{"label": index}``. Every shard is read once from end to end, for where its images lie; that is kept in a cache.
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import numpy as np

from icnets.data.cache import cached
from icnets.data.image_files import image_extensions
from icnets.support.text import few, first_line, tell

_LABELS = ("cls", "json")  # extensions of what holds a class
_USUAL = ("jpg", "jpeg", "png", "webp")  # of several images of a key, the one that is meant
_LONGEST_LABEL = 1 << 20  # bytes


def expand(pattern: str) -> list[str]:
    """Expand a pattern with braces, ``train-{000..002}.tar`` or ``{a,b}.tar``, to names in order."""
    parts = re.split(r"\{([^{}]*)\}", pattern)  # every second one stood in braces
    return ["".join(name) for name in product(*(_choices(p) if i % 2 else [p] for i, p in enumerate(parts)))]


def _choices(braces: str) -> list[str]:
    first, _, last = braces.partition("..")
    if first.isdecimal() and last.isdecimal():
        return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return braces.split(",")


def find_shards(root: Path, split: str) -> list[str]:
    """List the shards of a split, ``root/SPLIT/*.tar`` or ``root/SPLIT*.tar``, sorted; perhaps none."""
    found = (root / split).glob("*.tar") if (root / split).is_dir() else root.glob(f"{split}*.tar")
    return sorted(str(path) for path in found)


class Shards:
    """The images of tar shards.

    Args:
        shards: paths or URLs (https, s3, gs, hf: whatever fsspec opens).
        cache: folder that keeps where the images lie; None: each shard is read anew.

    Attributes:
        targets: class index of each image.

    Raises:
        ValueError: a shard that is missing, damaged or truncated, or has an image without a class, a class that is no
            number, or a member whose name leads out of its folder.
    """

    def __init__(self, shards: Sequence[str], cache: Path | None) -> None:
        self.shards = list(shards)
        indices = [cached(cache, f"shard-{_digest(shard)}", partial(_index, shard)) for shard in self.shards]
        self._shard = np.repeat(np.arange(len(indices)), [len(index["images"]) for index in indices])
        self._images = np.concatenate([index["images"] for index in indices])
        self.targets: list[int] = self._images[:, 2].tolist()
        if left_out := Counter(kind for index in indices for kind in index["left_out"].tolist()):
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(left_out.items()))
            tell(f"{few(self.shards, 1)}: left out samples without an image that is read: {kinds}")

    def __len__(self) -> int:
        return len(self.targets)

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self._read(index, *self._images[index, :2].tolist()))

    def name(self, index: int) -> str:
        header = self._read(index, int(self._images[index, 0]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        member = header[:100].rstrip(b"\0").decode(errors="replace")
        return f"{self.shards[int(self._shard[index])]}: {member}"

    def _read(self, index: int, offset: int, size: int) -> bytes:
        shard = self.shards[int(self._shard[index])]
        system, path = fsspec.core.url_to_fs(shard)
        content = system.cat_file(path, start=offset, end=offset + size)
        if len(content) != size:
            raise OSError(f"{shard} has become shorter: {len(content)} bytes at {offset} where there were {size}")
        return content


def _digest(shard: str) -> str:
    """Return what changes when the shard does."""
    if "://" not in shard and not Path(shard).is_file():
        raise ValueError(f"there is no shard {shard}")
    try:
        system, path = fsspec.core.url_to_fs(shard)
        state = system.info(path)
    except Exception as error:
        raise ValueError(f"can't open the shard {shard}: {first_line(error)}") from error
    return hashlib.sha256(f"3 {shard} {path} {state.get('size')} {state.get('mtime')}".encode()).hexdigest()[:24]


class _Member(NamedTuple):
    """A file in a shard: its header, its extension, and the content where that is a label's."""

    info: tarfile.TarInfo
    suffix: str
    content: bytes


def _index(shard: str) -> dict[str, np.ndarray]:
    """Read offset, size and class of a shard's images, and what the other samples have in place of an image.

    Raises:
        ValueError: with what is wrong first, and the number of further things.
    """
    rows, left_out, wrong, extensions = [], [], list[str](), image_extensions()
    for key, members in _by_key(shard, wrong).items():
        images = [member for member in members if f".{member.suffix}" in extensions]
        images = [member for member in images if member.suffix in _USUAL] or images
        labels = [member for kind in _LABELS for member in members if member.suffix == kind]
        if not images:
            others = (member.suffix for member in members if member.suffix not in _LABELS)
            kind = next((f".{s}" if s else "without an extension" for s in others), "of a class alone")
            left_out += [kind] if labels else []
        elif len(images) > 1:
            wrong.append(f"{images[1].info.name!r} in the shard {shard}: key {key} has an image already")
        elif not labels:
            wrong.append(f"{images[0].info.name!r} in the shard {shard}: no .cls or .json beside the image")
        else:
            try:
                rows.append((images[0].info.offset_data, images[0].info.size, _class_index(labels[0])))
            except ValueError as error:
                wrong.append(f"{labels[0].info.name!r} in the shard {shard}: {error}")
    if wrong:
        raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more problems)" if len(wrong) > 1 else ""))
    if not rows:
        what = f": {few(left_out)}" if left_out else ""
        raise ValueError(f"the shard {shard} holds no images ({', '.join(_USUAL)}, ...){what}")
    return {"images": np.array(sorted(rows), dtype=np.int64), "left_out": np.array(left_out, dtype=str)}


def _by_key(shard: str, wrong: list[str]) -> dict[str, list[_Member]]:
    """Read the headers and labels of a shard, by key: "a/0001.Seg.png" has the key "a/0001", and its samples one each.

    Members of a key need not be neighbours; links, folders and devices are left out. No image is read.

    Args:
        shard: path or URL.
        wrong: takes a line for each member whose name leads out of its folder.

    Raises:
        ValueError: the shard is damaged.
    """
    members: dict[str, list[_Member]] = {}
    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                name = info.name.replace("\\", "/")  # as unpacked on any system
                folder, slash, base = info.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if name.startswith("/") or ".." in name.split("/"):
                    wrong.append(f"{info.name!r} in the shard {shard}: leads out of its folder")
                elif info.isfile():
                    label: Any = archive.extractfile(info) if suffix.lower() in _LABELS else io.BytesIO()
                    member = _Member(info, suffix.lower(), label.read(_LONGEST_LABEL + 1))
                    members.setdefault(f"{folder}{slash}{stem}", []).append(member)
            _require_end(archive)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the shard {shard} is damaged or no tar file: {why}") from error
    return members


def _require_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError without a block of zeros at the end; tarfile takes damaged headers and a cut for the end too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"it is cut off, or its header is damaged, at byte {archive.offset:,}")


def _class_index(member: _Member) -> int:
    """Return the class in a ``cls``, plain digits, or ``json``, {"label": index}; ValueError says what is wrong."""
    if member.info.size > _LONGEST_LABEL:
        raise ValueError(f"it has {member.info.size:,} bytes, too many for a class")
    text = member.content.decode("utf-8", "replace").strip()
    if member.suffix == "json":
        try:
            index = json.loads(text)["label"]
        except (ValueError, RecursionError, TypeError, LookupError):
            index = None
        if type(index) is not int:
            raise ValueError(f"its label is {repr(index)[:40]}; it must be a whole number")
        text = str(index)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"its class is {repr(text)[:40]}; it must be a whole number from 0, of 9 digits at most")
    return int(text)


def shard_classes(root: Path | None, targets: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the classes of shards: by ``root``/classes.txt, one a line; without it, by their numbers.

    Raises:
        ValueError: a split has other classes.
    """
    listed = None if root is None else root / "classes.txt"
    if listed is not None and listed.is_file():
        names, known = listed.read_text(encoding="utf-8").splitlines(), f"{listed} lists"
    else:
        names, known = [str(i) for i in range(max(targets["train"]) + 1)], "the training shards have"
    for split, indices in targets.items():
        if (most := max(indices)) >= len(names):
            raise ValueError(f"the {split} shards have class {most}, but {known} 0 to {len(names) - 1}")
    return names
