"""Image folders made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    """A noisy colour image (height, width), different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(folder: Path, **counts: int) -> Path:
    """A folder with one subfolder per class, with as many images each as given."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write_image(folder / name / f"{i:03}.png", seed=1000 * number + i)
    return folder
