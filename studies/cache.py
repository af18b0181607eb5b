"""Arrays that take long to make, kept in a folder."""

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from icnets.support.files import atomic_write

__all__ = ["cached"]


def cached(folder: Path | None, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays that ``make`` gives, kept in ``folder``/``name``.npz; without a folder they are made each time.

    Processes may race for it: each puts a whole file in place.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    nothing = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # there is no file, or not a whole one
    with suppress(*nothing), open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
        return dict(kept)
    arrays: dict[str, Any] = make()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished, open(unfinished, "wb") as output:
        np.savez(output, **arrays)
    return arrays
