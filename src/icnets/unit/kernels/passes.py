"""The elementwise passes of an IC unit over its output, in place where possible.

Activations are ``(N, C, *L)``, dense and contiguous or channels last; sums ``s`` are ``(N, groups, *L)``, vectors
``(C,)``. One pass by :mod:`icnets.unit.kernels.native` or :mod:`icnets.unit.kernels.gpu` where they serve, else
several by torch's operators.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.unit.kernels import gpu, native

__all__ = ["Gradients", "collide_", "collide_backward", "post_"]

# Of y, s, collision, offset and gain.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class _Grouped:
    """Views in which activations, sums and vectors broadcast: ``(N, groups, C / groups, *L)``."""

    def __init__(self, y: Tensor, groups: int) -> None:
        self.sizes, self.places = [groups, y.size(1) // groups], list(y.shape[2:])

    def wide(self, t: Tensor) -> Tensor:
        return t.view(t.size(0), *self.sizes, *self.places)

    def sums(self, s: Tensor) -> Tensor:
        return s.unsqueeze(2)

    def vector(self, v: Tensor) -> Tensor:
        return v.view(self.sizes + [1] * len(self.places))


def collide_(
    y: Tensor, s: Tensor, collision: Tensor, factor: float, offset: Tensor | None, gain: Tensor | None
) -> Tensor:
    """Overwrites y with ``y + gain * relu(y - factor * collision * s + offset)``."""
    if native.serves(y, s):
        return cast(Tensor, native.operator("collide_")(y, s, collision, factor, offset, gain))
    if (z := gpu.run("collide_", y, s, collision, factor, offset, gain)) is not None:
        return cast(Tensor, z)
    view = _Grouped(y, s.size(1))
    wide = view.wide(y)
    u = torch.addcmul(wide, view.vector(collision), view.sums(s), value=-factor)
    if offset is not None:
        u.add_(view.vector(offset))
    u.relu_()
    wide.add_(u if gain is None else u.mul_(view.vector(gain)))
    return y


def collide_backward(
    dz: Tensor,
    z: Tensor,
    z_is_y: bool,
    s: Tensor,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    factor: float,
) -> Gradients:
    """Gradients of the arguments of :func:`collide_`, from its result z (or from y, with ``z_is_y``) and dz."""
    if native.serves(z, s) and native.serves(z, dz):
        operator = native.operator("collide_backward")
        dy, ds, dv, do, dg = operator(dz, z, z_is_y, s, collision, factor, offset, gain)
        return dy, ds, dv, None if offset is None else do, None if gain is None else dg
    if (found := gpu.run("collide_backward", z, s, dz, z_is_y, collision, factor, offset, gain)) is not None:
        return cast(Gradients, found)
    work = torch.promote_types(z.dtype, s.dtype)  # single precision for half
    collision = collision.to(work)
    offset, gain = (None if t is None else t.to(work) for t in (offset, gain))
    dy, ds, dv, do, dg = _backward(dz, z, s, collision, offset, gain, factor)
    # Both were summed over m, the branch's gradient without the gain.
    dv = dv.mul_(-factor) if gain is None else dv.mul_(gain).mul_(-factor)
    do = do if do is None or gain is None else do.mul_(gain)
    dg = dg if dg is None or gain is None or z_is_y else dg.div_(1 + gain)
    return dy, ds, dv, do, dg


def _backward(
    dz: Tensor, z: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, gain: Tensor | None, factor: float
) -> Gradients:
    view, over = _Grouped(z, s.size(1)), [0, *range(3, z.dim() + 1)]
    t = torch.addcmul(view.wide(z), view.vector(collision), view.sums(s), value=-factor)
    dz = torch.empty_like(z, dtype=t.dtype).copy_(dz) if dz.stride() != z.stride() else dz.to(t.dtype)
    gradient = view.wide(dz)
    if offset is not None:
        t.add_(view.vector(offset))
    dg = None if gain is None else t.relu().mul_(gradient).sum(over).flatten()
    m = torch.ops.aten.threshold_backward.grad_input(gradient, t, 0, grad_input=t)
    ds, dv = _weighted_sums(m, s, collision * -factor if gain is None else collision * gain * -factor)
    do = None if offset is None else m.sum(over).flatten()
    dy = (m if gain is None else m.mul_(view.vector(gain))).add_(gradient)
    return dy.view(z.shape).to(z.dtype), ds, dv, do, dg


def _weighted_sums(m: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of m ``(N, G, P, *L)``: the sum over each group's channels of ``m * v``, and over all places of ``m * s``.

    As products of matrices, which need no memory of m's size.
    """
    groups, members = m.shape[1:3]
    v = v.view(groups, members)
    if members == 1:
        m = m.squeeze(2)
        ds = m * v.view([groups] + [1] * (m.dim() - 2))
        return ds, (m * s).sum([0, *range(2, m.dim())])
    if m.is_contiguous():
        table = m.flatten(3) if m.dim() > 3 else m.unsqueeze(3)
        ds = torch.matmul(v.unsqueeze(1), table).view(s.shape)
        return ds, torch.matmul(table, s.reshape(len(s), groups, -1, 1)).sum([0, 3]).flatten()
    table = m.movedim((1, 2), (0, -1)).reshape(groups, -1, members)
    ds = torch.bmm(table, v.unsqueeze(2)).view(groups, len(s), *s.shape[2:]).movedim(0, 1)
    return ds, torch.bmm(table.mT, s.movedim(1, 0).reshape(groups, -1, 1)).flatten()


def post_(
    v: Tensor,
    s: Tensor | None,
    slope: Tensor | None,
    uniform_slope: float,
    sign: Tensor | None,
    collision: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Overwrites v with ``sign * prelu(v) + collision * s + offset``; see :mod:`icnets.unit.deployed`."""
    if s is not None and collision is not None:
        if (r := gpu.run("post_", v, s, slope, uniform_slope, sign, collision, offset)) is not None:
            return cast(Tensor, r)
    view = _Grouped(v, 1 if s is None else s.size(1))
    # In half precision the result is rounded once, at the end.
    wide = view.wide(v)
    r = wide.float() if v.dtype in (torch.float16, torch.bfloat16) else wide
    if slope is not None:
        below = torch.clamp_max(r, 0)
        r.relu_().addcmul_(view.vector(slope), below)
    elif uniform_slope != 1:
        F.leaky_relu_(r, uniform_slope)
    if sign is not None:
        r.mul_(view.vector(sign))
    if offset is not None:
        r.add_(view.vector(offset))
    if collision is not None and s is not None:
        r.addcmul_(view.vector(collision), view.sums(s))
    if r is not wide:
        wide.copy_(r)
    return v
