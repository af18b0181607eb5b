"""Adds to a data set of imagenet_like.py what ``icnets data check`` should find, and a list of it: broken.json.

Nothing that was there is changed: broken files are new ones. The kinds are those of ``icnets.data.check``.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from icnets.support.files import atomic_write
from imagenet_like import Sample, Settings, class_name, encoded

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
    entries = [{"path": path, "kind": kind} for path, kind in files]
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
    """Extension and bytes of files that can't be read; no two are ever the same, but for the empty ones."""
    deep = Image.fromarray(rng.integers(0, 1 << 16, (24, 32), dtype=np.uint16))
    return {
        "empty": (".JPEG", b""),
        "truncated": (".JPEG", good[: len(good) // 2]),
        "noise": (".JPEG", rng.bytes(500)),
        "bomb": (".png", _png_header(30_000, rng)),
        "hollow": (".png", _png_header(1_000, rng)),
        "16-bit": (".png", _saved(deep, "PNG")),
    }


def _image_files(out: Path, settings: Settings, count: int) -> Iterator[tuple[str, str]]:
    for i in range(count):
        rng = np.random.default_rng((settings.seed, 2, i))
        folder = f"train/{class_name(i % settings.classes)}"
        for name, (extension, content) in _contents(rng, _fresh(settings, i)).items():
            path = f"{folder}/x-{name}-{i}{extension}"
            (out / path).write_bytes(content)
            yield path, "unreadable"
    for i in range(min(count, settings.classes)):
        folder = f"val/{class_name(i)}"
        (out / folder / "note.txt").write_bytes(b"a note")
        yield folder, "ignored"


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
