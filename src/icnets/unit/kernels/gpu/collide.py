"""The collision of an activation in place, and its backward: one pass over memory each.

Backward reads the output and its gradient once and gives every gradient: the activation's, that of the sums, added up
over each group's channels, and those of the vectors, added up over all places. The last are partial sums, one for each
program, which torch adds up: no atomics, so equal runs give equal bits.

A tile has the groups, a group's channels and the places of one example as its dimensions, in either memory format.
"""

# No "from __future__ import annotations" in modules of kernels: Triton reads their annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from icnets.unit.kernels.gpu.layout import Layout


@triton.jit
def _vector(ptr, channel, known, PRESENT: tl.constexpr, OTHERWISE: tl.constexpr):
    """A vector's entries for the channels of a tile, or ``OTHERWISE`` for each where there is none."""
    if PRESENT:
        return tl.load(ptr + channel, mask=known, other=0).to(tl.float32)
    else:
        return tl.full(channel.shape, OTHERWISE, tl.float32)


@triton.jit
def _unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET: tl.constexpr, GAIN: tl.constexpr):
    """The unit's w' with the factor in it, offset and gain for the channels of a tile."""
    v = factor * _vector(v_ptr, channel, known, True, 0)
    return v, _vector(o_ptr, channel, known, OFFSET, 0), _vector(g_ptr, channel, known, GAIN, 1)


@triton.jit
def _place(s_ptr, L, G, sn, sl, sg, BG: tl.constexpr, BL: tl.constexpr):
    """The example, groups ``(BG, 1, 1)`` and places ``(1, 1, BL)`` of a program, and the sums there."""
    columns = tl.cdiv(L, BL)
    example = (tl.program_id(0) // columns).to(tl.int64)
    place = (tl.program_id(0) % columns * BL + tl.arange(0, BL))[None, None, :]
    group = (tl.program_id(1) * BG + tl.arange(0, BG))[:, None, None]
    at = s_ptr + example * sn + place * sl + group * sg
    return example, group, place, tl.load(at, mask=(group < G) & (place < L), other=0).to(tl.float32)


@triton.jit
def _channels(first, example, group, place, L, G, sc, sp, P: tl.constexpr, BC: tl.constexpr):
    """Channels ``(BG, BC, 1)`` from the ``first`` of each group on, which there are, and where in memory they lie."""
    member = (first + tl.arange(0, BC))[None, :, None]
    channel = group * P + member
    return channel, (group < G) & (member < P), example * (G * P) * L + channel * sc + place * sp


@triton.jit
def _forward(
    y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, L, G, sc, sp, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr,
    BG: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    example, group, place, sums = _place(s_ptr, L, G, sn, sl, sg, BG, BL)
    channel, known, at = _channels(tl.program_id(2) * BC, example, group, place, L, G, sc, sp, P, BC)
    inside = known & (place < L)
    y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
    v, o, gain = _unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    z = y + gain * tl.maximum(y - v * sums + o, 0)
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dz_ptr, z_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, dy_ptr, ds_ptr, part_ptr, L, G, sc, sp, sn, sl, sg, dl, dg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr,
    BG: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    example, group, place, sums = _place(s_ptr, L, G, sn, sl, sg, BG, BL)
    part = part_ptr + tl.program_id(0).to(tl.int64) * (3 * G * P)
    to_s = tl.zeros([BG, 1, BL], tl.float32)
    for first in range(0, P, BC):
        channel, known, at = _channels(first, example, group, place, L, G, sc, sp, P, BC)
        inside = known & (place < L)
        dz = tl.load(dz_ptr + at, mask=inside, other=0).to(tl.float32)
        z = tl.load(z_ptr + at, mask=inside, other=0).to(tl.float32)
        v, o, gain = _unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
        u = z - v * sums + o
        m = tl.where(u > 0, dz, 0)
        tl.store(dy_ptr + at, (dz + gain * m).to(dy_ptr.dtype.element_ty), mask=inside)
        to_s -= tl.sum(m * (v * gain), axis=1, keep_dims=True)
        tl.store(part + channel, tl.sum(m * sums, axis=2, keep_dims=True), mask=known)
        if OFFSET:
            tl.store(part + G * P + channel, tl.sum(m, axis=2, keep_dims=True), mask=known)
        if GAIN:
            tl.store(part + 2 * G * P + channel, tl.sum(m * u, axis=2, keep_dims=True), mask=known)
    tl.store(ds_ptr + example * G * L + place * dl + group * dg, to_s, mask=(group < G) & (place < L))


def collide_(
    y: Tensor, s: Tensor, layout: Layout, collision: Tensor, factor: float, offset: Tensor | None, gain: Tensor | None
) -> Tensor:
    """Overwrites y with ``y + gain * relu(y - factor * collision * s + offset)``."""
    vectors = [collision, *(collision if v is None else v for v in (offset, gain))]  # an absent one is never read
    bg, bc, bl = layout.tile()
    columns = layout.batch * triton.cdiv(layout.places, bl)
    grid = (columns, triton.cdiv(layout.groups, bg), triton.cdiv(layout.per_group, bc))
    flags = {"P": layout.per_group, "OFFSET": offset is not None, "GAIN": gain is not None}
    _forward[grid](y, s, *vectors, factor, *_sizes(layout), **flags, BG=bg, BC=bc, BL=bl)
    return y


def _sizes(layout: Layout) -> tuple[int, ...]:
    """Places and groups, the activation's strides by channel and place, and those of the sums."""
    last = (1, layout.channels) if layout.last else (layout.places, 1)
    return (layout.places, layout.groups, *last, *layout.strides)


def collide_backward(
    z: Tensor,
    s: Tensor,
    layout: Layout,
    dz: Tensor,
    z_is_y: bool,
    collision: Tensor,
    factor: float,
    offset: Tensor | None,
    gain: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of y, s, collision, offset and gain, from the result z of :func:`collide_` (or y, with ``z_is_y``)."""
    if dz.stride() != z.stride() or dz.dtype != z.dtype:
        dz = torch.empty_like(z).copy_(dz)
    dy, ds = torch.empty_like(z), layout.empty_sums(z)
    bg, bc, bl = layout.tile()
    columns = layout.batch * triton.cdiv(layout.places, bl)
    part = z.new_empty(columns, 3, layout.channels, dtype=torch.float32)
    vectors = [collision, *(collision if t is None else t for t in (offset, gain)), factor]
    to = (1, layout.places) if not layout.last else (layout.groups, 1)
    flags = {"P": layout.per_group, "OFFSET": offset is not None, "GAIN": gain is not None}
    tile = {"BG": bg, "BC": bc, "BL": bl}
    given = (dz, z, s, *vectors, dy, ds, part, *_sizes(layout), *to)
    _backward[(columns, triton.cdiv(layout.groups, bg))](*given, **flags, **tile)
    dv = part[:, 0].sum(0).mul_(-factor)
    do = None if offset is None else part[:, 1].sum(0)
    if gain is None:
        return dy, ds, dv, do, None
    dg = part[:, 2].sum(0)
    return dy, ds, dv.mul_(gain), None if do is None else do.mul_(gain), dg if z_is_y else dg.div_(1 + gain)
