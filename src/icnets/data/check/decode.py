"""One file, or one member of a shard, decoded as training would. Runs in processes of its own: imports little."""

import hashlib
import os
import stat
from io import BytesIO
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from icnets.data.image_files import read_header, reason, slenderness, without_warnings

# What training makes of these is what the eye sees.
_PLAIN_MODES = ("RGB", "L")
_SAME_FORMAT = {"MPO": "JPEG"}  # a JPEG with a second picture for the camera's own use
_MOST_BYTES = 1 << 30  # of a file; no image that Pillow decodes has more


class Item(NamedTuple):
    """An image, or what may be one.

    Args:
        name: what it is called in reports.
        path: the file; with ``offset`` and ``size``, the part of it that a shard's member is.
        split: train, val, test or all.
        label: its class; None outside of class folders.
        listed: whether training would read it, by its place and extension.
    """

    name: str
    path: str
    split: str
    label: str | None
    listed: bool = True
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Return all of the bytes. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Checked(NamedTuple):
    """(kind, reason) of what is wrong, and a digest of the bytes of an image that training would read."""

    found: list[tuple[str, str]]
    digest: bytes | None = None


def inspect(item: Item, min_size: int = 0) -> Checked:
    """Decode ``item`` fully. ``min_size``: the side in pixels below which an image is reported as small."""
    extension = PurePosixPath(item.name).suffix.lower()
    with without_warnings():
        try:
            if not stat.S_ISREG(os.stat(item.path).st_mode):  # a pipe would be waited for
                return Checked([("unreadable", "no file")])
            if not item.listed:
                return Checked(_unlisted(item, extension))
            if (size := os.path.getsize(item.path) if item.size < 0 else item.size) > _MOST_BYTES:
                return Checked([("unreadable", f"{size:,} bytes, more than {_MOST_BYTES:,}")])
            content = item.read()
        except OSError as error:
            return Checked([("unreadable", reason(error))])
        if not content:
            return Checked([("empty-file", "0 bytes")])
        return Checked(_decode(content, extension, min_size), hashlib.blake2b(content, digest_size=16).digest())


def _unlisted(item: Item, extension: str) -> list[tuple[str, str]]:
    with open(item.path, "rb") as file:
        try:
            with Image.open(file) as image:
                what = f"{image.format}, {image.width}x{image.height}"
        except Exception:
            return [] if item.label is None else [("not-image", f"no image; training ignores {extension or 'it'}")]
    if item.label is None:
        return [("outside-class", what)]
    return [("ignored-image", f"{what}; training doesn't read {extension or 'files without extension'}")]


def _decode(content: bytes, extension: str, min_size: int) -> list[tuple[str, str]]:
    try:
        with read_header(BytesIO(content)) as image:
            found = _looks(image, extension, min_size)
            if (problem := slenderness(image)) is not None:
                return [*found, ("unreadable", problem)]
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                return [*found, ("huge", f"{image.width}x{image.height}")]
            image.load()
            if image.mode not in _PLAIN_MODES:
                image.convert("RGB")  # which not every mode can
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        return [("bomb", reason(error).partition(",")[0])]
    except Exception as error:  # decoders raise whatever they stumble over
        why = reason(error)
        cut = any(words in why.lower() for words in ("truncated", "end of file", "not enough data"))
        return [("truncated" if cut else "unreadable", why)]
    return [*found, ("animated", f"{frames} frames")] if frames > 1 else found


def _looks(image: Image.Image, extension: str, min_size: int) -> list[tuple[str, str]]:
    """What the header alone tells."""
    found = []
    named, actual = (
        _SAME_FORMAT.get(name or "", name) for name in (Image.registered_extensions().get(extension), image.format)
    )
    if named not in (None, actual):
        found.append(("wrong-extension", f"{image.format} by content"))
    if min(image.size) < min_size:
        found.append(("small", f"{image.width}x{image.height}, the least is {min_size}"))
    if image.mode == "CMYK":
        found.append(("cmyk", "mode CMYK"))
    elif image.mode.startswith(("I", "F")):
        found.append(("16-bit", f"mode {image.mode}"))
    elif image.mode not in _PLAIN_MODES or "transparency" in image.info:
        transparent = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
        found.append(("mode", f"mode {image.mode}{', with transparency' if transparent else ''}"))
    return found
