"""The elementwise passes of an IC unit over its output, in place where they may be, on CPUs tile by tile (ours).

Activations are ``(N, C, *L)``, dense and contiguous or channels last; sums ``s`` are ``(N, groups, *L)``, vectors
``(C,)``. What fits in one tile and has one group takes the shortest way: on small maps each call into torch counts.
Where :mod:`icnets.kernels.native` or, on GPUs, :mod:`icnets.kernels.gpu` serves, it takes a single pass instead.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.kernels import gpu, native, tiles
from icnets.kernels.tiles import ChannelSums, GroupSums, Rows

__all__ = ["Gradients", "collide_", "collide_backward", "is_short", "post_"]

# Of y, s, collision, offset and gain.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def is_short(elements: int, like: Tensor, groups: int) -> bool:
    """Whether an activation of so many elements on ``like``'s device is one tile of one group."""
    return groups == 1 and (elements <= tiles.LIMIT or like.device.type != "cpu")


def collide_(
    y: Tensor,
    s: Tensor,
    collision: Tensor,
    factor: float,
    offset: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None = None,
) -> Tensor:
    """Overwrites y with ``y + gain * relu(y - factor * collision * s + offset)``.

    For an offset of ``2 * shift``, y may come with ``shift`` added: a convolution adds it for nothing.
    """
    if shift is None and native.serves(y, s):
        return cast(Tensor, native.operator("collide_")(y, s, collision, factor, offset, gain))
    if shift is None and (z := gpu.run("collide_", y, s, collision, factor, offset, gain)) is not None:
        return cast(Tensor, z)
    if is_short(y.numel(), y, s.size(1)):
        column = (-1,) + (1,) * (y.dim() - 2)
        u = torch.addcmul(y, collision.view(column), s, value=-factor)
        if offset is not None:
            u.add_(offset.view(column))
        u = u.relu_() if shift is None else torch.maximum(u, -shift.view(column), out=u)
        return y.add_(u if gain is None else u.mul_(gain.view(column)))
    rows = Rows(y, s.size(1))
    y_, s_, v_ = rows.of(y), rows.sums(s), rows.vector(collision)
    offset_ = None if offset is None else rows.vector(offset)
    gain_ = None if gain is None else rows.vector(gain)
    floor_ = None if shift is None else rows.vector(-shift)
    scratch = rows.scratch(y, torch.promote_types(y.dtype, s.dtype))
    for tile in rows.tiles():
        part = tile(y_)
        u = torch.addcmul(part, tile(v_), tile(s_, wide=False), value=-factor, out=scratch(part))
        if offset_ is not None:
            u.add_(tile(offset_))
        u = u.relu_() if floor_ is None else torch.maximum(u, tile(floor_), out=u)
        part.add_(u if gain_ is None else u.mul_(tile(gain_)))
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
    backward = _short_backward if is_short(z.numel(), z, s.size(1)) else _tiled_backward
    work = torch.promote_types(z.dtype, s.dtype)  # single precision for half
    collision = collision.to(work)
    offset, gain = (None if t is None else t.to(work) for t in (offset, gain))
    dy, ds, dv, do, dg = backward(dz, z, s, collision, offset, gain, factor)
    # Both were summed over m, the branch's gradient without the gain.
    dv = dv.mul_(-factor) if gain is None else dv.mul_(gain).mul_(-factor)
    do = do if do is None or gain is None else do.mul_(gain)
    dg = dg if dg is None or gain is None or z_is_y else dg.div_(1 + gain)
    return dy, ds, dv, do, dg


def _short_backward(
    dz: Tensor,
    z: Tensor,
    s: Tensor,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    factor: float,
) -> Gradients:
    column = (-1,) + (1,) * (z.dim() - 2)
    over = [0, *range(2, z.dim())]
    do = dg = None
    t = torch.addcmul(z, collision.view(column), s, value=-factor)
    dz = dz.to(t.dtype)
    if offset is not None:
        t.add_(offset.view(column))
    if gain is not None:
        dg = t.relu().mul_(dz).sum(over)
    m = torch.ops.aten.threshold_backward.grad_input(dz, t, 0, grad_input=t)
    v = collision * -factor if gain is None else collision * gain * -factor
    if m.is_contiguous():
        table = m.view(*m.shape[:2], -1)
        ds = torch.matmul(v, table).view(s.shape)
        dv = torch.bmm(table, s.reshape(len(s), -1, 1)).sum([0, 2])
    else:
        table = m.movedim(1, -1).reshape(-1, m.size(1))
        ds = torch.mv(table, v).view(s.shape)
        dv = torch.mv(table.T, s.reshape(-1))
    if offset is not None:
        do = m.sum(over)
    dy = (m if gain is None else m.mul_(gain.view(column))).add_(dz)
    return dy.to(z.dtype), ds, dv, do, dg


def _tiled_backward(
    dz: Tensor,
    z: Tensor,
    s: Tensor,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    factor: float,
) -> Gradients:
    rows, dy = Rows(z, s.size(1)), torch.empty_like(z)
    dz_, z_, dy_, s_, v_ = rows.read(dz), rows.of(z), rows.of(dy), rows.sums(s), rows.vector(collision)
    offset_ = None if offset is None else rows.vector(offset)
    gain_ = None if gain is None else rows.vector(gain)
    # The gain is left out of the branch's gradient m, and put to the vectors instead.
    ds = GroupSums(rows, collision * -factor if gain is None else collision * gain * -factor)
    dv, do, dg = (ChannelSums(rows, collision) for _ in range(3))
    scratch = rows.scratch(z, collision.dtype)
    for tile in rows.tiles():
        part, gradient, sums = tile(z_), tile(dz_).to(collision.dtype), tile(s_, wide=False)
        t = torch.addcmul(part, tile(v_), sums, value=-factor, out=scratch(part))
        if offset_ is not None:
            t.add_(tile(offset_))
        if gain is not None:
            dg.add(t.relu().mul_(gradient), tile)
        m = torch.ops.aten.threshold_backward.grad_input(gradient, t, 0, grad_input=t)
        ds.add(m, tile)
        dv.add(m, tile, sums)
        if offset is not None:
            do.add(m, tile)
        if gain_ is None:
            torch.add(gradient, m, out=tile(dy_))
        else:
            torch.addcmul(gradient, tile(gain_), m, out=tile(dy_))
    d_offset = None if offset is None else do.result()
    return dy, ds.result(), dv.result(), d_offset, None if gain is None else dg.result()


def post_(
    v: Tensor,
    s: Tensor | None,
    slope: Tensor | None,
    uniform_slope: float,
    sign: Tensor | None,
    collision: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Overwrites v with ``sign * prelu(v) + collision * s + offset``; see :mod:`icnets.deploy`."""
    if s is not None and collision is not None:
        if (r := gpu.run("post_", v, s, slope, uniform_slope, sign, collision, offset)) is not None:
            return cast(Tensor, r)
    groups = 1 if s is None else s.size(1)
    vectors = (slope, sign, collision, offset)
    if is_short(v.numel(), v, groups):
        column = (-1,) + (1,) * (v.dim() - 2)
        r = _post_(v, s, uniform_slope, *(None if t is None else t.view(column) for t in vectors))
        return v if r is v else v.copy_(r)
    rows = Rows(v, groups)
    v_, s_ = rows.of(v), None if s is None else rows.sums(s)
    spread = [None if t is None else rows.vector(t) for t in vectors]
    for tile in rows.tiles():
        part, sums = tile(v_), None if s_ is None else tile(s_, wide=False)
        r = _post_(part, sums, uniform_slope, *(None if t is None else tile(t) for t in spread))
        if r is not part:
            part.copy_(r)
    return v


def _post_(
    v: Tensor,
    s: Tensor | None,
    uniform_slope: float,
    slope: Tensor | None,
    sign: Tensor | None,
    collision: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    # In half precision the result is rounded once, at the end.
    r = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
    if slope is not None:
        below = torch.clamp_max(r, 0)
        r.relu_().addcmul_(slope, below)
    elif uniform_slope != 1:
        F.leaky_relu_(r, uniform_slope)
    if sign is not None:
        r.mul_(sign)
    if offset is not None:
        r.add_(offset)
    if collision is not None and s is not None:
        r.addcmul_(collision, s)
    return r
