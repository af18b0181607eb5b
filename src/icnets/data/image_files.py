"""Which files are images, and how one is opened: by the extensions and formats that Pillow reads here."""

import logging
import os
import stat
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from PIL import Image

from icnets.support.quiet import muted

LeftOut = Counter[str]  # how many files of a kind aren't read: ".txt", "without an extension", ...

# Formats that Pillow knows by their header only: other programs decode them, such as Ghostscript, or nobody.
_NAMED_ONLY = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
_SYSTEM = frozenset({"thumbs.db", "desktop.ini"})
_MOST_SLENDER = 1000  # one side by the other: resized to a network's size, more than that would fill the memory


def written(path: Path | str) -> str:
    """A path as text for a file in UTF-8: bytes that are none are escaped, as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _NAMED_ONLY]


def image_extensions() -> frozenset[str]:
    """Return the extensions that are read, in lower case with their dots; plugins of Pillow add theirs."""
    formats = {*_formats(), "MPO"}  # a JPEG's kind, and no format of its own
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def images_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """List the files that training reads, in any subfolders, sorted; their extension decides, not their content.

    Args:
        folder: links to folders within aren't followed.
        left_out: takes what isn't read, but for hidden files and the system's own.
    """
    extensions, found = image_extensions(), list[Path]()
    for where, folders, names in os.walk(folder, onerror=lambda _: left_out.update(["folders that can't be opened"])):
        left_out["links to folders"] += sum(os.path.islink(os.path.join(where, name)) for name in folders)
        for name in names:
            path, suffix = Path(where, name), Path(name).suffix.lower()
            if name.startswith(".") or name.lower() in _SYSTEM:
                continue
            if suffix in extensions and path.is_file():
                found.append(path)
            else:
                left_out["that are no files" if suffix in extensions else suffix or "without an extension"] += 1
    return sorted(found)


def left_out_line(left_out: LeftOut, shown: int = 8) -> str:
    """Say how many files of which kind aren't read: "left out: 12 .txt, 1 without an extension"; "" where none is."""
    counts = sorted((+left_out).items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{number:,} {kind}" for kind, number in counts[:shown]]
    if rest := sum(number for _, number in counts[shown:]):
        parts.append(f"{rest:,} others")
    return f"left out: {', '.join(parts)}" if parts else ""


def decode(source: IO[bytes] | Path, *, grey: bool = False) -> Image.Image:
    """Read the image in a file, in RGB; ``grey``: without its colours.

    Raises:
        ValueError: it is no file, has more than 8 bits a channel, or is too slender to be resized.
        Exception: whatever Pillow stumbles over.
    """
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise ValueError("it is no file")  # a pipe would be waited for
    with Image.open(source, formats=_formats()) as file:
        width, height = file.size
        if file.mode.startswith(("I", "F")):  # Pillow would clip all of it to white
            raise ValueError(f"it has more than 8 bits a channel (mode {file.mode}); convert it to 8")
        if not 0 < max(width, height) <= _MOST_SLENDER * min(width, height):
            raise ValueError(f"it has {width} × {height} pixels, which can't be resized to a square")
        image: Image.Image = file.convert("L") if grey else file
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # to its own mode, convert would copy


def without_warnings() -> AbstractContextManager[None]:
    """Silence Pillow, which warns and logs of metadata and large images for each anew; errors are still raised."""
    return muted(logging.CRITICAL, "PIL")


def reason(error: Any) -> str:
    """Say why an image can't be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if "cannot identify image file" in text:
        return "it is no image by its content"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
