"""Glyphs: letters and digits rendered from a folder of fonts; the families in the test set are unseen in training.

Any folder of OTF and TTF files serves. Those of Debian's texlive-fonts-extra (1,700 files, half a gigabyte):

    apt-get download texlive-fonts-extra && dpkg -x texlive-fonts-extra_*.deb fonts
"""

from __future__ import annotations

import string
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from icnets.data.folders import take
from studies.tensors import Splits, TensorData, cached

__all__ = ["CHARACTERS", "Glyphs", "render_folder"]

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_DRAWN = 96  # pixels of the font's size, before the image is made small
_LEAST_INK = 0.005  # of an image's area: less is a blank


class Glyphs(TensorData):
    """Grey images, light on black, of the 62 characters 0-9, A-Z, a-z; a family is the folder that a font lies in.

    Which families are in the test, validation and training part is drawn by seed.

    Args:
        fonts: folder with OTF and TTF files, in any subfolders.
        image_size: pixels.
        train: number of training images, drawn by class from the training families.
        val: number of validation images; likewise.
        test: number of test images; likewise.
        val_fraction: of the families' images, for validation.
        test_fraction: likewise, for the test.
        cache: see :class:`studies.tensors.TensorData`.
        **options: see :class:`studies.tensors.TensorData`.
    """

    def __init__(
        self,
        fonts: Path,
        image_size: int = 32,
        train: int = 30_000,
        val: int = 3000,
        test: int = 10_000,
        val_fraction: float = 0.07,
        test_fraction: float = 0.2,
        cache: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(cache=cache, **options)
        if image_size < 8:
            raise ValueError(f"image_size is {image_size}; it must be at least 8")
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                f"val_fraction is {val_fraction} and test_fraction {test_fraction}; both must be positive, "
                "and something must be left for training"
            )
        self.fonts, self.image_size = Path(fonts), image_size
        self.wanted = {"train": train, "val": val, "test": test}
        self.fractions = {"test": test_fraction, "val": val_fraction}

    def splits(self) -> Splits:
        name = f"glyphs-{self.image_size}"
        arrays = cached(self.cache, name, lambda: render_folder(self.fonts, self.image_size))
        images, target = torch.from_numpy(arrays["images"]).unsqueeze(1), arrays["target"].astype(np.int64)
        parts = self._families(arrays["family"])
        split = {}
        for name, wanted in self.wanted.items():
            own = np.flatnonzero(np.isin(arrays["family"], parts[name]))
            if len(own) < wanted:
                raise ValueError(f"{name} is {wanted}, but its {len(parts[name])} families have {len(own)} images")
            chosen = own[take(target[own].tolist(), wanted, self.seed)[0]]
            split[name] = (images[chosen], torch.from_numpy(target[chosen]))
        return Splits(**split, class_names=list(CHARACTERS))

    def _families(self, family: np.ndarray) -> dict[str, list[int]]:
        """Families drawn one by one until a part has its share of the images; a family that would take more is left."""
        counts = np.bincount(family)
        left = np.random.default_rng(self.seed).permutation(len(counts)).tolist()
        parts: dict[str, list[int]] = {}
        for name, fraction in self.fractions.items():
            room, chosen = max(fraction * len(family), self.wanted[name]), []
            limit = 1.25 * room
            for i in list(left):
                if room > 0 and counts[i] <= limit:
                    chosen.append(i)
                    left.remove(i)
                    room, limit = room - counts[i], limit - counts[i]
            parts[name] = chosen
        return {**parts, "train": left}


def render_folder(folder: Path, size: int) -> dict[str, np.ndarray]:
    """Every character of every usable font.

    Fonts that lack one of the characters, or draw one as a blank, are left out.

    Args:
        folder: with OTF and TTF files, in any subfolders.
        size: pixels of the images.

    Returns:
        ``images`` (N, size, size) uint8, ``target`` (N,) and ``family`` (N,), numbers from 0.

    Raises:
        ValueError: fewer than 3 families with a usable font.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".otf", ".ttf"))
    rendered = [(path.parent, images) for path in paths if (images := _render(path, size)) is not None]
    families = sorted({parent for parent, _ in rendered})
    if len(families) < 3:
        raise ValueError(
            f"{folder} has {len(paths)} fonts, with {len(families)} families of usable ones; training, validation and "
            "test need one each at least"
        )
    number = {parent: i for i, parent in enumerate(families)}
    return {
        "images": np.concatenate([images for _, images in rendered]),
        "target": np.tile(np.arange(len(CHARACTERS), dtype=np.int16), len(rendered)),
        "family": np.repeat(np.array([number[parent] for parent, _ in rendered], dtype=np.int16), len(CHARACTERS)),
    }


def _render(path: Path, size: int) -> np.ndarray | None:
    """The characters in one font (62, size, size) uint8; None where it can't show them all."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with BytesIO(path.read_bytes()) as file, TTFont(file, lazy=True) as font:
            known = font.getBestCmap() or {}
        if not all(ord(c) in known for c in CHARACTERS):
            return None
        face = ImageFont.truetype(str(path), _DRAWN)
        images = [_draw(face, c, size) for c in CHARACTERS]
    except (OSError, TTLibError, ValueError):  # damaged, or of a kind that FreeType doesn't draw
        return None
    stack = np.stack(images)
    blank = stack.mean(axis=(1, 2)) < 255 * _LEAST_INK
    return None if blank.any() or len(np.unique(stack, axis=0)) < len(CHARACTERS) // 2 else stack


def _draw(face: ImageFont.FreeTypeFont, character: str, size: int) -> np.ndarray:
    """One character on a common baseline and scale, so that case shows; centred from left to right."""
    side = 2 * _DRAWN
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side // 2, round(1.3 * _DRAWN)), character, fill=255, font=face, anchor="ms")
    low, high = round(0.35 * _DRAWN), round(1.65 * _DRAWN)
    return np.asarray(canvas.crop((low, low, high, high)).resize((size, size), Image.Resampling.BOX))
