"""Pictures of what the network saw: images back from tensors, heat maps over them, and many of them on one sheet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from icnets.support.files import atomic_write

__all__ = ["ContactSheet", "as_image", "heated", "picture", "save_png", "unnormalized"]


def unnormalized(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A normalised image (1 or 3, H, W) as it was before: (3, H, W) in [0, 1]."""
    m, s = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (x * s + m).clamp(0, 1).expand(3, -1, -1)


def as_image(pixels: Tensor) -> Image.Image:
    """From pixels (3, H, W); what is outside [0, 1] is cut off."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def picture(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalised image (1 or 3, H, W) as it was before, in RGB."""
    return as_image(unnormalized(x, mean, std))


def heated(pixels: Tensor, heat: Tensor) -> Tensor:
    """``pixels`` (3, H, W) in grey under ``heat`` (h, w), both in [0, 1].

    The colours rise in lightness, for every kind of colour vision.
    """
    from matplotlib import colormaps

    large = F.interpolate(heat[None, None].float(), size=pixels.shape[-2:], mode="bilinear")[0, 0]
    colours = torch.from_numpy(colormaps["inferno"](large.numpy())[..., :3]).permute(2, 0, 1).float()
    return 0.45 * pixels.mean(0, keepdim=True) + 0.55 * colours


def save_png(image: Image.Image, path: Path) -> None:
    """Writes ``path`` atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


class ContactSheet:
    """The first images on one sheet, each with its caption.

    Args:
        most: images on it.
        columns: images in a row.
        size: of each, in pixels.
    """

    def __init__(self, most: int = 100, columns: int = 8, size: int = 144) -> None:
        self.most, self.columns, self.size = most, columns, size
        self._tiles: list[tuple[Tensor | None, list[str]]] = []

    @property
    def full(self) -> bool:
        return len(self._tiles) >= self.most

    def add(self, image: Image.Image | None, lines: Sequence[str]) -> None:
        """One more image (None: unreadable) with two lines of caption, unless the sheet is full."""
        if self.full:
            return
        small = None
        if image is not None:
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
            small = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)[0]
        self._tiles.append((small, list(lines)))

    def save(self, path: Path) -> None:
        """Writes the sheet as PNG, atomically."""
        columns, caption, gap = min(self.columns, max(len(self._tiles), 1)), 26, 6
        rows = -(-len(self._tiles) // columns)
        step = self.size + gap
        sheet = Image.new("RGB", (columns * step + gap, rows * (step + caption) + gap), "white")
        draw = ImageDraw.Draw(sheet)
        for i, (tile, lines) in enumerate(self._tiles):
            left, top = gap + i % columns * step, gap + i // columns * (step + caption)
            if tile is None:
                draw.rectangle((left, top, left + self.size - 1, top + self.size - 1), fill=(225, 225, 225))
            else:
                pixels = tile.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
                sheet.paste(Image.fromarray(pixels.numpy()), (left, top))
            for k, line in enumerate(lines[:2]):
                draw.text((left, top + self.size + 1 + 12 * k), self._fitting(draw, line), fill="black")
        save_png(sheet, path)

    def _fitting(self, draw: ImageDraw.ImageDraw, text: str) -> str:
        """The end of ``text``, as much as is as wide as an image: paths differ there."""
        text = "".join(c if c.isprintable() else "?" for c in text)[-80:]
        while text and draw.textlength(text) > self.size:
            text = text[1:]
        return text
