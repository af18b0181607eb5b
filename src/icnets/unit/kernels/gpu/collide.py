"""The collision of an activation in place, and its backward: one pass over memory each (ours).

Backward reads the output and its gradient once and gives every gradient: the activation's, that of the sums, added up
over each group's channels, and those of the vectors, added up over all places. The last are partial sums, one for each
program, which torch adds up: no atomics, so equal runs give equal bits.
"""

# No "from __future__ import annotations" in modules of kernels: Triton reads their annotations.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icnets.unit.kernels.gpu.layout import Layout, blocks, sharing
from icnets.unit.kernels.gpu.tile import (
    argument,
    collided,
    first_sums,
    last_channels,
    last_rows,
    last_sums,
    store_parts,
    unit_vectors,
    vector,
)

__all__ = ["collide_", "collide_backward", "post_"]


@triton.jit
def _result(
    y, sums, v_ptr, o_ptr, g_ptr, sign_ptr, factor, slope, channel, known,
    DEPLOYED: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """The unit's output, or with DEPLOYED that of its deployed form, whose slopes are in the place of the gain."""
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    if DEPLOYED:
        below = gain if GAIN else slope
        return tl.where(y > 0, y, y * below) * vector(sign_ptr, channel, known, SIGN, 1) + v * sums + o
    else:
        return collided(y, sums, v, o, gain)


@triton.jit
def _forward_last(
    y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, sign_ptr, factor, slope, R, L, G, sn, sl, sg,
    P: tl.constexpr, DEPLOYED: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, SIGN: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    row, there = last_rows(tl.program_id(0), R, BM)
    at = y_ptr + row * (G * P) + channel
    y = tl.load(at, mask=there & known, other=0).to(tl.float32)
    sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
    z = _result(y, sums, v_ptr, o_ptr, g_ptr, sign_ptr, factor, slope, channel, known, DEPLOYED, OFFSET, GAIN, SIGN)
    tl.store(at, z.to(y_ptr.dtype.element_ty), mask=there & known)


@triton.jit
def _forward_first(
    y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, sign_ptr, factor, slope, L, G, sn, sl, sg,
    P: tl.constexpr, DEPLOYED: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, SIGN: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    example, group = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    place = (tl.program_id(0) * BL + tl.arange(0, BL))[None, :]
    member = (tl.program_id(2) * BC + tl.arange(0, BC))[:, None]
    channel, known, there = group * P + member, member < P, place < L
    at = y_ptr + (example * (G * P) + channel) * L + place
    y = tl.load(at, mask=known & there, other=0).to(tl.float32)
    sums = first_sums(s_ptr, example, group, place, there, sn, sl, sg)
    z = _result(y, sums, v_ptr, o_ptr, g_ptr, sign_ptr, factor, slope, channel, known, DEPLOYED, OFFSET, GAIN, SIGN)
    tl.store(at, z.to(y_ptr.dtype.element_ty), mask=known & there)


@triton.jit
def _backward_last(
    dz_ptr, z_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, dy_ptr, ds_ptr, part_ptr, R, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    q = -v * gain
    with_s = tl.zeros([BM, BG, BP], tl.float32)
    with_1 = tl.zeros([BM, BG, BP], tl.float32)
    with_u = tl.zeros([BM, BG, BP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0)):
        row, there = last_rows(block, R, BM)
        inside, at = there & known, row * (G * P) + channel
        dz = tl.load(dz_ptr + at, mask=inside, other=0).to(tl.float32)
        z = tl.load(z_ptr + at, mask=inside, other=0).to(tl.float32)
        sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
        u = argument(z, sums, v, o)
        m = tl.where(u > 0, dz, 0)
        tl.store(dy_ptr + at, (dz + gain * m).to(dy_ptr.dtype.element_ty), mask=inside)
        ds = tl.sum(m * q, axis=2, keep_dims=True)
        tl.store(ds_ptr + row * G + group, ds, mask=there & has_group)
        with_s += m * sums
        if OFFSET:
            with_1 += m
        if GAIN:
            with_u += m * u
    part = part_ptr + tl.program_id(0) * (3 * G * P) + channel
    with_s = tl.sum(with_s, axis=0, keep_dims=True)
    with_1 = tl.sum(with_1, axis=0, keep_dims=True)
    with_u = tl.sum(with_u, axis=0, keep_dims=True)
    store_parts(part, G * P, known, with_s, with_1, with_u, OFFSET, GAIN)


@triton.jit
def _backward_first(
    dz_ptr, z_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, dy_ptr, ds_ptr, part_ptr, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    example, group = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    place = (tl.program_id(0) * BL + tl.arange(0, BL))[None, :]
    there = place < L
    sums = first_sums(s_ptr, example, group, place, there, sn, sl, sg)
    part = part_ptr + (example * tl.num_programs(0) + tl.program_id(0)) * (3 * G * P)
    to_s = tl.zeros([BC, BL], tl.float32)
    for first in range(0, P, BC):
        member = (first + tl.arange(0, BC))[:, None]
        channel, known = group * P + member, member < P
        inside, at = known & there, (example * (G * P) + channel) * L + place
        dz = tl.load(dz_ptr + at, mask=inside, other=0).to(tl.float32)
        z = tl.load(z_ptr + at, mask=inside, other=0).to(tl.float32)
        v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
        u = argument(z, sums, v, o)
        m = tl.where(u > 0, dz, 0)
        dy = dz + gain * m
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)
        to_s -= m * v * gain
        with_s = tl.sum(m * sums, axis=1, keep_dims=True)
        with_1 = tl.sum(m, axis=1, keep_dims=True)
        with_u = tl.sum(m * u, axis=1, keep_dims=True)
        store_parts(part + channel, G * P, known, with_s, with_1, with_u, OFFSET, GAIN)
    ds = tl.sum(to_s, axis=0, keep_dims=True)
    tl.store(ds_ptr + (example * G + group) * L + place, ds, mask=there)


def collide_(
    y: Tensor, s: Tensor, layout: Layout, collision: Tensor, factor: float, offset: Tensor | None, gain: Tensor | None
) -> Tensor:
    """Overwrites y with ``y + gain * relu(y - factor * collision * s + offset)``."""
    return _forward_(y, s, layout, collision, offset, gain, None, factor, 1.0, deployed=False)


def post_(
    v: Tensor,
    s: Tensor,
    layout: Layout,
    slope: Tensor | None,
    uniform_slope: float,
    sign: Tensor | None,
    collision: Tensor,
    offset: Tensor | None,
) -> Tensor:
    """Overwrites v with ``sign * prelu(v) + collision * s + offset``; see :mod:`icnets.unit.deployed`."""
    return _forward_(v, s, layout, collision, offset, slope, sign, 1.0, uniform_slope, deployed=True)


def _forward_(
    y: Tensor,
    s: Tensor,
    layout: Layout,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    sign: Tensor | None,
    factor: float,
    slope: float,
    deployed: bool,
) -> Tensor:
    absent = collision  # never read
    vectors = [absent if t is None else t for t in (offset, gain, sign)]
    given = (y, s, collision, *vectors, factor, slope)
    present = {"OFFSET": offset is not None, "GAIN": gain is not None, "SIGN": sign is not None}
    flags: dict[str, Any] = {"DEPLOYED": deployed, **present}
    sizes = (layout.groups, *layout.strides, layout.per_group)
    if layout.last:
        bm, bg, bp = layout.last_tile()
        grid: tuple[int, ...] = (blocks(layout.rows, bm), blocks(layout.groups, bg))
        _forward_last[grid](*given, layout.rows, layout.places, *sizes, **flags, BM=bm, BG=bg, BP=bp)
    else:
        bc, bl = layout.first_tile()
        grid = (blocks(layout.places, bl), layout.batch * layout.groups, blocks(layout.per_group, bc))
        _forward_first[grid](*given, layout.places, *sizes, **flags, BC=bc, BL=bl)
    return y


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
    dz = _like(dz, z)
    dy, ds = torch.empty_like(z), layout.empty_sums(z)
    absent = collision  # never read
    vectors = (collision, absent if offset is None else offset, absent if gain is None else gain, factor)
    flags: dict[str, Any] = {"OFFSET": offset is not None, "GAIN": gain is not None}
    sizes = (layout.groups, *layout.strides, layout.per_group)
    if layout.last:
        bm, bg, bp = layout.last_tile()
        shared = sharing(z, blocks(layout.rows, bm))
        part = z.new_empty(shared, 3, layout.channels, dtype=torch.float32)
        to: tuple[Any, ...] = (dy, ds, part, layout.rows, layout.places, *sizes)
        _backward_last[(shared, blocks(layout.groups, bg))](dz, z, s, *vectors, *to, **flags, BM=bm, BG=bg, BP=bp)
    else:
        bc, bl = layout.first_tile()
        columns = blocks(layout.places, bl)
        part = z.new_empty(layout.batch * columns, 3, layout.channels, dtype=torch.float32)
        to = (dy, ds, part, layout.places, *sizes)
        _backward_first[(columns, layout.batch * layout.groups)](dz, z, s, *vectors, *to, **flags, BC=bc, BL=bl)
    dv, do, dg = _vector_gradients(part, factor, offset, gain)
    if gain is not None and dg is not None and not z_is_y:
        dg.div_(1 + gain)
    return dy, ds, dv, do, dg


def _vector_gradients(
    part: Tensor, factor: float, offset: Tensor | None, gain: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of collision, offset and gain ``(C,)`` from the programs' shares ``(programs, 3, C)``."""
    dv = part[:, 0].sum(0).mul_(-factor)
    do = None if offset is None else part[:, 1].sum(0)
    if gain is None:
        return dv, do, None
    return dv.mul_(gain), None if do is None else do.mul_(gain), part[:, 2].sum(0)


def _like(t: Tensor, other: Tensor) -> Tensor:
    """``t`` in the type and the memory format of ``other``: itself, or a copy."""
    return t if t.stride() == other.stride() and t.dtype == other.dtype else torch.empty_like(other).copy_(t)
