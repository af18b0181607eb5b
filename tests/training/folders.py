"""Image folders made on the spot."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter


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


def write_textures(folder: Path, seed: int = 0, each: int = 70) -> Path:
    """``each`` images (64, 64) of four classes: noise, blurred by a little more from class to class."""
    rng = np.random.default_rng(seed)
    for blur in (1.0, 1.45, 1.9, 2.35):
        (folder / f"blur-{blur}").mkdir(parents=True)
        for i in range(each):
            noise = rng.integers(0, 256, (64, 64, 3)).astype(np.float64)
            image = gaussian_filter(noise, (blur, blur, 0)).astype(np.uint8)
            Image.fromarray(image).save(folder / f"blur-{blur}" / f"{i:03}.png")
    return folder


def write_gratings(folder: Path, seed: int = 0, each: int = 70) -> Path:
    """``each`` noisy images (64, 64) of four classes: stripes in four directions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    for direction in range(4):
        (folder / f"grating-{direction}").mkdir(parents=True)
        along = x * math.cos(math.pi * direction / 4) + y * math.sin(math.pi * direction / 4)
        for i in range(each):
            wave = np.sin(2 * math.pi * (rng.uniform(0.08, 0.16) * along + rng.uniform()))
            image = 128 + 40 * wave[..., None] + rng.normal(scale=60, size=(64, 64, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"grating-{direction}" / f"{i:03}.png")
    return folder
