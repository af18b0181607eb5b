"""Adds to a data set of imagenet_like.py what ``icnets data check`` should find, and a list of it: broken.json.

Nothing that was there is changed: broken files are new ones, and broken members are in shards of their own. The kinds
are those of ``icnets.data.check.problems``, but for "crash", for want of a decoder that does.
"""

from __future__ import annotations

import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from icnets.support.files import atomic_write
from imagenet_like import Sample, Settings, add_member, class_name, encoded

__all__ = ["add_broken"]

_FRESH = 1_000_000  # numbers of images that the data set itself doesn't have


def add_broken(out: Path, settings: Settings, count: int) -> list[dict[str, str]]:
    """Add ``count`` of each kind; returns {"path": ..., "kind": ...} of each, paths relative to ``out``.

    Raises:
        ValueError: the data set has too few images to copy, or broken ones already.
    """
    listing = out / "broken.json"
    if listing.exists():
        raise ValueError(f"{out} has broken files already, see {listing}")
    if settings.classes < 2 or settings.train < 3 * count:
        raise ValueError(
            f"{settings.classes} classes of {settings.train} training images are too few for {count} broken of each "
            f"kind; give at least 2 classes of {3 * count}"
        )
    files = [*_image_files(out, settings, count), *_copies(out, settings, count), *_classes(out, settings, count)]
    entries = [{"path": path, "kind": kind} for path, kind in [*files, *_shards(out, settings, count)]]
    with atomic_write(listing) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return entries


def _fresh(settings: Settings, number: int) -> bytes:
    """A sound image that the data set doesn't have."""
    return encoded(settings, Sample("train", number % settings.classes, _FRESH + number))


def _saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _png_header(side: int, rng: np.random.Generator) -> bytes:
    """A PNG file that claims ``side`` times ``side`` pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rng.bytes(64)) + chunk(b"IEND", b"")


def _contents(rng: np.random.Generator, good: bytes) -> dict[str, tuple[str, bytes]]:
    """Extension and bytes of a broken file by kind; no two are ever the same, but for the empty ones."""
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    other = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 1 << 16, (24, 32), dtype=np.uint16))
    return {
        "empty-file": (".JPEG", b""),
        "truncated": (".JPEG", good[: len(good) // 2]),
        "unreadable": (".JPEG", rng.bytes(500)),
        "bomb": (".png", _png_header(30_000, rng)),
        "huge": (".png", _png_header(10_000, rng)),
        "16-bit": (".png", _saved(deep, "PNG")),
        "cmyk": (".JPEG", _saved(image.convert("CMYK"), "JPEG")),
        "mode": (".png", _saved(image.convert("P"), "PNG", transparency=0)),
        "animated": (".png", _saved(image, "PNG", save_all=True, append_images=[other])),
        "wrong-extension": (".JPEG", _saved(image, "PNG")),
        "ignored-image": (".orig", _saved(image, "BMP")),
        "not-image": (".txt", b"a note"),
        "outside-class": (".JPEG", _saved(image, "JPEG")),
        "small": (".png", _saved(image.crop((0, 0, 5, 5)), "PNG")),
    }


def _image_files(out: Path, settings: Settings, count: int) -> Iterator[tuple[str, str]]:
    for i in range(count):
        rng = np.random.default_rng((settings.seed, 2, i))
        for kind, (extension, content) in _contents(rng, _fresh(settings, i)).items():
            folder = "train" if kind == "outside-class" else f"train/{class_name(i % settings.classes)}"
            path = f"{folder}/x-{kind}-{i}{extension}"
            (out / path).write_bytes(content)
            yield path, kind


def _copies(out: Path, settings: Settings, count: int) -> Iterator[tuple[str, str]]:
    """Copies of images of class 0; their names, or their folders, come later in the order."""
    targets = (("duplicate", "train", 0), ("duplicate-class", "train", 1), ("duplicate-split", "val", 0))
    for k, (kind, split, label) in enumerate(targets):
        for i in range(count):
            path = f"{split}/{class_name(label)}/x-{kind}-{i}.JPEG"
            (out / path).write_bytes((out / Sample("train", 0, k * count + i).path).read_bytes())
            yield path, kind


def _classes(out: Path, settings: Settings, count: int) -> Iterator[tuple[str, str]]:
    for i in range(count):
        for split in ("train", "val"):
            path = f"{split}/x-empty-{i}"
            (out / path).mkdir()
            yield path, "empty-class"
        path = f"val/x-other-{i}"
        (out / path).mkdir()
        (out / path / "image.JPEG").write_bytes(_fresh(settings, 100 + i))
        yield path, "class-difference"


def _shards(out: Path, settings: Settings, count: int) -> Iterator[tuple[str, str]]:
    """One shard whose members are broken, and ``count`` that are damaged as a whole."""
    first = len(list((out / "shards").glob("train-*.tar")))
    names = [f"shards/train-{first + i:06}.tar" for i in range(count + 1)]
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(count):
            for member, kind in _members(tar, i, lambda n, i=i: _fresh(settings, 200 + 10 * i + n)):  # type: ignore[misc]
                yield f"{names[0]}:{member}", kind
    (out / names[0]).write_bytes(file.getvalue())
    for i, name in enumerate(names[1:]):
        file = BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for n in range(2):
                add_member(tar, f"{n}.jpg", _fresh(settings, 500 + 2 * i + n))
                add_member(tar, f"{n}.cls", b"0")
        whole = file.getvalue()
        second = 2 * tarfile.BLOCKSIZE + whole.index(b"1.jpg\0")  # in the middle of the second image
        cut = [whole[:second], whole.replace(b"1.jpg\0", b"1.jpX\0", 1), _saved(Image.new("L", (40, 40), i), "PNG")]
        (out / name).write_bytes(cut[i % 3])
        yield name, "shard-damaged"


def _members(tar: tarfile.TarFile, i: int, fresh: Callable[[int], bytes]) -> Iterator[tuple[str, str]]:
    """Broken members; their keys begin with the number ``i``, so that no two samples share one."""

    def add(name: str, content: bytes) -> str:
        add_member(tar, name, content)
        return name

    if i % 2:
        yield add(f"{i}-alone.cls", b"0"), "no-partner"
    else:
        yield add(f"{i}-alone.jpg", fresh(0)), "no-partner"
    add(f"{i}-label.jpg", fresh(1))
    bad = (("cls", b"cat"), ("json", b'{"label": "3"}'), ("cls", b"-1"))[i % 3]
    yield add(f"{i}-label.{bad[0]}", bad[1]), "bad-label"
    add(f"{i}-twice.jpg", fresh(2))
    yield add(f"{i}-twice.jpeg", fresh(3)), "repeated-key"
    add(f"{i}-twice.cls", b"0")
    yield add(f"{'/' if i % 2 else '../'}{i}-unsafe.jpg", fresh(4)), "unsafe-name"
    yield add(f"{i}-note.txt", b"a note"), "not-image"
    link = tarfile.TarInfo(f"{i}-link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE if i % 2 else tarfile.LNKTYPE, "/etc/hostname"
    tar.addfile(link)
    yield link.name, "link"
