"""The collision by torch's own operators, with autograd's own backward: where no fused path serves (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["collide"]


def collide(
    y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, gain: Tensor | None, factor: float
) -> Tensor:
    """``y + gain * relu(y - factor * collision * s + offset)``; y ``(N, C, *L)``, s ``(N, groups, *L)``."""
    column = (-1,) + (1,) * (y.dim() - 2)
    wide = s.repeat_interleave(y.size(1) // s.size(1), 1)
    u = torch.addcmul(y, (collision * factor).view(column), wide, value=-1)
    u = u if offset is None else u + offset.view(column)
    return (y + (u.relu() if gain is None else u.relu() * gain.view(column))).type_as(y)
