"""Pictures of what the network saw: images back from tensors, heat maps over them, and many of them on one sheet."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from icnets.support.files import atomic_write

_COLUMNS, _SIZE, _CAPTION, _GAP = 8, 144, 26, 6  # images in a row, and the rest in pixels
_LETTERS = 24  # of a caption, as wide as an image


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
    """``pixels`` (3, H, W) under ``heat`` (h, w), both in [0, 1].

    Where there is no heat the image is as it was; from half of the heat on, 45 % of its colours are the heat's, which
    rise in lightness, for every kind of colour vision.
    """
    from matplotlib import colormaps

    large = F.interpolate(heat[None, None].float(), size=pixels.shape[-2:], mode="bilinear")[0, 0]
    colours = torch.from_numpy(colormaps["inferno"](large.numpy())[..., :3]).permute(2, 0, 1).float()
    return torch.lerp(pixels, colours, 0.45 * (2 * large).clamp(max=1))


def save_png(image: Image.Image, path: Path) -> None:
    """Writes ``path`` atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def save_sheet(tiles: Sequence[tuple[Image.Image, Sequence[str]]], path: Path) -> None:
    """Writes images on one sheet, atomically, each with two lines of caption."""
    columns, step = min(_COLUMNS, max(len(tiles), 1)), _SIZE + _GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * step + _GAP, rows * (step + _CAPTION) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(tiles):
        left, top = _GAP + i % columns * step, _GAP + i // columns * (step + _CAPTION)
        kind = Image.Resampling.BILINEAR if max(image.size) > _SIZE // 2 else Image.Resampling.NEAREST
        sheet.paste(image.resize((_SIZE, _SIZE), kind), (left, top))
        for k, line in enumerate(lines[:2]):
            draw.text((left, top + _SIZE + 1 + 12 * k), line[:_LETTERS], fill="black")
    save_png(sheet, path)
