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
    grouped, over = [*dz.shape[:channel], s.size(channel), -1, *dz.shape[dz.dim() - nd :]], list(range(-dz.dim(), 0))
    del over[channel]
    # By views that the vmap of is_grads_batched knows: no unflatten and flatten.
    vector = (collision * factor).view([s.size(channel), -1] + ones)
    t = z - (vector * s.unsqueeze(channel)).reshape(z.shape)
    if offset is not None:
        t = t + offset.view([-1] + ones)
    m = dz * (t > 0).type_as(dz)
    d_gain = None
    if gain is not None:
        expanded = gain.view([-1] + ones)
        d_gain = (m * t if is_y else m * t / (1 + expanded)).sum(over)  # t off z is (1 + gain) u
        m = m * expanded
    parts = m.reshape(grouped)
    ds = -(parts * vector).sum(channel)
    dv = -(parts * s.unsqueeze(channel)).reshape(dz.shape).sum(over) * factor
    return (dz + m).type_as(dz), ds, dv, None if offset is None else m.sum(over), d_gain
