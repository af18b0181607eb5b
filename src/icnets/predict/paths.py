"""From what the command line names to image files: files, folders, patterns, and lists of paths."""

import csv
import glob
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from icnets.data.folders import find_images
from icnets.data.image_files import LINK, LeftOut, chosen, images_below, left_out_line
from icnets.support.text import tell

LISTS = (".txt", ".csv")
_COLUMNS = ("path", "image", "file", "filename")  # that a list's header may call its paths


def find_paths(given: Sequence[str]) -> list[Path]:
    """The image files that ``given`` names, in its order; a folder's are sorted.

    A file is taken as an image whatever its extension, but for lists (.txt, .csv). Folders are searched to any depth
    for the extensions that training reads. What doesn't exist as it stands, and has one of ``*?[``, is a pattern, in
    which ``**`` stands for folders to any depth; of what it finds, other extensions are passed over. A list names one
    file a line (.txt), or in its column path, image, file or filename, else in its first one (.csv), relative to the
    current folder; whether they exist shows when they are read.

    Raises:
        ValueError: something that isn't there, that holds or finds no images, or a list that can't be read.
    """
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if not text.strip():
            raise ValueError("one of the paths is empty; give image files, folders, patterns or lists of paths")
        if path.is_dir():
            found += find_images(path, classes=False).paths
        elif path.is_file():
            found += _listed(path) if path.suffix.lower() in LISTS else [path]
        elif path.exists():
            raise ValueError(f"{shown(path)} is neither a file nor a folder; give image files or folders of them")
        elif glob.has_magic(text):
            found += _matching(text)
        else:
            raise ValueError(f"there is no {shown(path)}; check the path")
    if not found:
        raise ValueError("there are no images to predict; give image files, folders, patterns or lists of paths")
    return found


def _matching(pattern: str) -> list[Path]:
    found: list[Path] = []
    left_out, searched = LeftOut(), set[Path]()
    for path in _found(pattern):
        if not searched.isdisjoint(path.parents):
            continue  # ** finds folders, and what is in them too
        if not path.is_dir():
            found += chosen([path], left_out)
        elif path.is_symlink() and "**" in pattern:
            left_out[LINK] += 1
        else:
            searched.add(path)
            found += images_below(path, left_out)
    if not found:
        raise ValueError(f"the pattern {shown(pattern)} finds no images; check it, and quote it against the shell")
    if left_out.total():
        tell(f"{shown(pattern)}: {left_out_line(left_out)}")
    return found


def _found(pattern: str) -> list[Path]:
    """As by glob.glob, sorted, but that links to folders aren't followed, which may lead in circles."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    rest = [part if part == "**" else re.sub(r"\*\*+", "*", part) for part in parts[first:]]
    base = Path(*parts[:first])
    hidden = any(part.startswith(".") for part in rest)
    found = base.glob("/".join(rest))
    shows = [p for p in found if hidden or not any(part.startswith(".") for part in p.relative_to(base).parts)]
    return sorted(shows, key=str)


def _listed(path: Path) -> list[Path]:
    """The paths of a list; bytes that are no UTF-8 are kept, as names of files keep them."""
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ValueError(f"can't read the list {shown(path)}: {error.strerror}") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    names = [name for name in (_column(path, text) if path.suffix.lower() == ".csv" else lines) if name.strip()]
    if not names:
        raise ValueError(f"the list {shown(path)} names no files; give one path a line")
    if any("\0" in name for name in names):
        raise ValueError(f"{shown(path)} is no list of paths: it holds bytes of zero")
    return [Path(name) for name in names]


def _column(path: Path, text: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"{shown(path)} is no CSV file: {error}") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None:
        return [row[0] for row in rows]
    return [row[column] for row in rows[1:] if len(row) > column]


def written(path: Path) -> str:
    """A path as text for a file in UTF-8: bytes that are none are escaped, as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown(path: Path | str) -> str:
    """A path as text for a terminal, which it can't command: what isn't printable is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
