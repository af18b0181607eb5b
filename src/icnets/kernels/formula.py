"""The collision by torch's own operators, with autograd's own backward: where no fused path serves (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["collide", "collide_backward"]


def collide(
    y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, gain: Tensor | None, factor: float
) -> Tensor:
    """``y + gain * relu(y - factor * collision * s + offset)``; y ``(N, C, *L)``, s ``(N, groups, *L)``."""
    column = (-1,) + (1,) * (y.dim() - 2)
    wide = s.repeat_interleave(y.size(1) // s.size(1), 1)
    u = torch.addcmul(y, (collision * factor).view(column), wide, value=-1)
    u = u if offset is None else u + offset.view(column)
    return (y + (u.relu() if gain is None else u.relu() * gain.view(column))).type_as(y)


def collide_backward(
    dz: Tensor,
    z: Tensor,
    is_y: bool,
    s: Tensor,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    factor: float,
    nd: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The same by operators that autograd can follow, for second derivatives."""
    channel, ones = -nd - 1, [1] * nd
    split = [s.size(channel), -1]
    over = [d for d in range(-dz.dim(), 0) if d != channel]
    vector = (collision * factor).view(split + ones)
    t = z - (vector * s.unsqueeze(channel)).flatten(channel - 1, channel)
    if offset is not None:
        t = t + offset.view([-1] + ones)
    m = dz * (t > 0).type_as(dz)
    d_gain = None
    if gain is not None:
        if is_y:
            raise RuntimeError("double backward needs the output of an IC layer, which was overwritten in place")
        expanded = gain.view([-1] + ones)
        d_gain = (m * t / (1 + expanded)).sum(over)
        m = m * expanded
    grouped = m.unflatten(channel, split)
    ds = -(grouped * vector).sum(channel)
    dv = -(grouped * s.unsqueeze(channel)).flatten(channel - 1, channel).sum(over) * factor
    return (dz + m).type_as(dz), ds, dv, None if offset is None else m.sum(over), d_gain
