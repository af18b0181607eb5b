"""Writes a data set in the shape of ImageNet, whose classes a network can learn: as folders.

    python benchmarks/imagenet_like.py OUT --classes 100 --train 50 --val 10

OUT/train and OUT/val hold a folder per class, n00000001 and on. Everything follows from the seed. A run that was
stopped goes on where it was.

A class is a shape with a texture of its own, by hue, frequency and direction, at any place and size, before a
background of blotches and other shapes, under noise. Sizes and proportions vary as ImageNet's do, around 500x375.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from icnets.support.files import atomic_write

__all__ = ["Sample", "Settings", "class_name", "encoded", "samples", "write"]

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Settings:
    """What is written: ``train`` and ``val`` images of each class, ``scale`` times as large as ImageNet's."""

    classes: int = 100
    train: int = 50
    val: int = 10
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("classes", "train", "val"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.scale <= 4:
            raise ValueError(f"scale is {self.scale}; it must be positive and at most 4")


@dataclass(frozen=True)
class Sample:
    """Image ``number`` of class ``label`` in a split."""

    split: str
    label: int
    number: int

    @property
    def path(self) -> str:
        """Where it is, relative to the data set."""
        name = class_name(self.label)
        return f"{self.split}/{name}/{name}_{self.number:05}.JPEG"


def class_name(label: int) -> str:
    """In the manner of WordNet's: n00000001 is class 0."""
    return f"n{label + 1:08}"


def samples(settings: Settings, split: str) -> list[Sample]:
    """All of a split, class by class."""
    count = getattr(settings, split)
    return [Sample(split, label, number) for label in range(settings.classes) for number in range(count)]


# Images.


def encoded(settings: Settings, sample: Sample) -> bytes:
    """The JPEG file of a sample; it depends on nothing but the arguments."""
    rng = np.random.default_rng((settings.seed, SPLITS.index(sample.split), sample.label, sample.number))
    image = _render(rng, sample.label, _size(rng, settings.scale))
    if rng.random() < 0.02:
        image = image.convert("L")  # some of ImageNet's are grey
    file = BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return file.getvalue()


def _size(rng: np.random.Generator, scale: float) -> tuple[int, int]:
    """Width and height in pixels: in most cases landscape, 4:3 or near it."""
    aspect = rng.choice([4 / 3, 3 / 2, 3 / 4, 1.0], p=[0.62, 0.18, 0.12, 0.08]) * math.exp(rng.normal(0, 0.08))
    side = math.sqrt(500 * 375) * math.exp(rng.normal(0, 0.25)) * scale
    return max(16, round(side * math.sqrt(aspect))), max(16, round(side / math.sqrt(aspect)))


def _texture(size: tuple[int, int], hue: float, waves: float, angle: float, phase: float) -> Image.Image:
    """Stripes of one hue: ``waves`` of them along the shorter side, at ``angle`` radians."""
    width, height = size
    y, x = np.mgrid[:height, :width] / min(size)
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    tint = np.full((height, width), int(hue * 255) % 256, np.uint8)
    planes = [tint, np.full_like(tint, 190), (70 + 170 * stripes).astype(np.uint8)]
    return Image.merge("HSV", [Image.fromarray(plane) for plane in planes]).convert("RGB")


def _outline(shape: int, center: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    """The corners of one of five shapes: triangle, square, star, cross, disc."""
    corners, inner = ((3, 1.0), (4, 1.0), (10, 0.4), (8, 0.45), (24, 1.0))[shape]
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    radii = [radius * (inner if i % 2 else 1.0) for i in range(corners)]
    return [(center[0] + r * math.cos(a), center[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _render(rng: np.random.Generator, label: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    short = min(size)
    blotches = Image.fromarray(rng.integers(40, 200, (4, 5, 3), dtype=np.uint8))
    image = blotches.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):
        place = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        outline = _outline(int(rng.integers(5)), place, float(rng.uniform(0.05, 0.2)) * short, float(rng.uniform(0, 6)))
        draw.polygon(outline, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    # What tells the classes apart; everything else is drawn at random.
    hue, shape = label * 0.618034 % 1, label % 5
    waves, angle = 4.0 + 4 * (label // 5 % 4), math.pi * (label // 20 % 5) / 5
    waves *= math.exp(rng.normal(0, 0.05))
    texture = _texture(
        size, hue + rng.normal(0, 0.015), waves, angle + float(rng.normal(0, 0.06)), float(rng.uniform(0, 6))
    )
    mask = Image.new("L", size)
    place = (float(rng.uniform(0.35, 0.65)) * width, float(rng.uniform(0.35, 0.65)) * height)
    outline = _outline(shape, place, float(rng.uniform(0.3, 0.48)) * short, float(rng.normal(0, 0.25)))
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    image.paste(texture, mask=mask)
    noisy = np.asarray(image, np.float32) * rng.uniform(0.75, 1.2) + rng.normal(0, 12, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


# Files.


def write(out: Path, settings: Settings, *, workers: int = 1) -> None:
    """Write the data set to ``out``, which is made if missing; files that are there already are kept.

    Raises:
        ValueError: ``out`` holds a data set of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / "settings.json"
    text = json.dumps(asdict(settings)) + "\n"
    if note.exists() and note.read_text(encoding="utf-8") != text:
        raise ValueError(f"{out} was written with {note.read_text().strip()}, not {text.strip()}; give another folder")
    with atomic_write(note) as temporary:
        temporary.write_text(text, encoding="utf-8")
    everything = [sample for split in SPLITS for sample in samples(settings, split)]
    for folder in sorted({(out / sample.path).parent for sample in everything}):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [(out, settings, s) for s in everything if not (out / s.path).exists()]
    _each(_write_image, missing, workers, "images")


def _write_image(job: tuple[Path, Settings, Sample]) -> None:
    out, settings, sample = job
    with atomic_write(out / sample.path) as temporary:
        temporary.write_bytes(encoded(settings, sample))


def _each(function: Callable[[Any], None], jobs: Sequence[Any], workers: int, noun: str) -> None:
    with _showing(len(jobs), noun) as advance:
        if workers == 1:
            for job in jobs:
                function(job)
                advance()
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for _ in pool.map(function, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers)))):
                advance()


@contextmanager
def _showing(total: int, noun: str) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; elsewhere a line for every tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(noun, total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{done:,} of {total:,} {noun}", file=sys.stderr, flush=True)

    yield advance


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--train", type=int, default=50, help="training images of each class")
    parser.add_argument("--val", type=int, default=10, help="validation images of each class")
    parser.add_argument("--scale", type=float, default=1.0, help="of the images' sides; 1: around 500x375")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    try:
        write(args.out, Settings(args.classes, args.train, args.val, args.scale, args.seed), workers=args.workers)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
