"""Ten capital letters in the fonts that matplotlib carries: two families to learn from, a third to be tried on."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
_SERIF = ("", "-Bold", "-Italic", "-BoldItalic")
FONTS = {
    "train": [f"DejaVuSans{style}" for style in _STYLES] + [f"DejaVuSerif{style}" for style in _SERIF],
    "val": [f"DejaVuSansMono{style}" for style in _STYLES],
}
LETTERS = "ABCDEFGHIJ"


def write_glyphs(root: Path, size: int, copies: int) -> Path:
    """Writes white letters on black, of ``size`` pixels, each ``copies`` times by each font, never at one place."""
    rng = np.random.default_rng(0)
    files = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for split, fonts in FONTS.items():
        for name in fonts:
            for letter in LETTERS:
                folder = root / split / letter
                folder.mkdir(parents=True, exist_ok=True)
                for copy in range(copies):
                    font = ImageFont.truetype(files / f"{name}.ttf", int(rng.integers(size // 2, size)))
                    image = Image.new("L", (size, size))
                    place = tuple(size / 2 + rng.uniform(-size / 10, size / 10, 2))
                    ImageDraw.Draw(image).text(place, letter, 255, font, anchor="mm")
                    image.save(folder / f"{name}-{copy}.png")
    return root
