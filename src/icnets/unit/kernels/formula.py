"""The collision and the gradients of sums by torch's own operators: where no fused path serves (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_at_steps_", "collide", "collide_backward", "spread"]


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


def add_at_steps_(dx: Tensor, d_total: Tensor, stride: list[int]) -> None:
    """Adds to each channel the gradient of its group's sum, of every place or of those that a stride leaves."""
    seen = dx
    if d_total.shape[2:] != dx.shape[2:]:
        for i, step in enumerate(stride):
            seen = seen[(slice(None),) * (i + 2) + (slice(None, None, step),)]
    groups = d_total.size(1)
    if groups == 1:
        seen.add_(d_total)
    else:
        seen.unflatten(1, [groups, -1]).add_(d_total.unsqueeze(2))


def spread(
    ds: Tensor, like: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient of sums over receptive fields, as a transposed convolution with ones, which autograd can follow."""
    groups, nd = ds.size(1), len(kernel)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    beyond = [like.size(2 + i) - (ds.size(2 + i) - 1) * stride[i] - reach[i] for i in range(nd)]
    ones = torch.ones([groups, 1, *kernel], dtype=ds.dtype, device=ds.device)
    total = torch.convolution(ds, ones, None, stride, padding, dilation, True, beyond, groups)
    return total.repeat_interleave(like.size(1) // groups, 1)
