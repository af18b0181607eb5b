"""From what the command line names to image files."""

from collections.abc import Sequence
from pathlib import Path

from icnets.data.folders import find_images
from icnets.data.image_files import written
from icnets.support.text import printable


def find_paths(given: Sequence[str]) -> list[Path]:
    """The image files that ``given`` names, in its order; a folder's are sorted.

    A file is taken as an image whatever its extension; folders are searched to any depth for those that training reads.

    Raises:
        ValueError: something that isn't there, or that holds no images.
    """
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if not text.strip():
            raise ValueError("one of the paths is empty; give image files or folders of them")
        if path.is_dir():
            found += find_images(path, classes=False).paths
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise ValueError(f"{shown(path)} is neither a file nor a folder; give image files or folders of them")
        else:
            raise ValueError(f"there is no {shown(path)}; check the path")
    return found


def shown(path: Path | str) -> str:
    """A path as text for a terminal, which it can't command: what isn't printable is escaped."""
    return printable(written(path))
