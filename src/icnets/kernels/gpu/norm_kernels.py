"""Collision, batch norm, shortcut and ReLU in the passes that a batch norm takes anyway, channels last (ours).

The output z of the collision is never written: each pass has it again from y and s.
"""

# No "from __future__ import annotations" in modules of kernels: Triton reads their annotations.
import triton
import triton.language as tl

from icnets.kernels.gpu.tile import (
    argument,
    collided,
    last_channels,
    last_rows,
    last_sums,
    store_parts,
    unit_vectors,
    vector,
)

__all__ = ["finish", "gradients", "normalise", "reduce", "statistics"]


@triton.jit
def statistics(
    y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, part_ptr, count_ptr, R, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Mean of z and sum of its squared deviations, by channel, over the rows of each program (Welford's way)."""
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    count = tl.zeros([BM, 1, 1], tl.float32)
    mean = tl.zeros([BM, BG, BP], tl.float32)
    squares = tl.zeros([BM, BG, BP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0)):
        row, there = last_rows(block, R, BM)
        y = tl.load(y_ptr + row * (G * P) + channel, mask=there & known, other=0).to(tl.float32)
        sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
        z = collided(y, sums, v, o, gain)
        count += tl.where(there, 1.0, 0.0)
        delta = tl.where(there & known, z - mean, 0)
        mean += delta * (1 / tl.maximum(count, 1))
        squares += delta * (z - mean)
    total = tl.sum(count, axis=0, keep_dims=True)
    middle = tl.sum(count * mean, axis=0, keep_dims=True) / total
    away = mean - middle
    spread = tl.sum(squares + count * away * away, axis=0, keep_dims=True)
    part = part_ptr + tl.program_id(0) * (2 * G * P) + channel
    tl.store(part, middle, mask=known)
    tl.store(part + G * P, spread, mask=known)
    tl.store(count_ptr + tl.program_id(0) + tl.zeros([1, 1, 1], tl.int32), total)


@triton.jit
def finish(
    part_ptr, count_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, momentum, eps, R, C, PARTS,
    RUNNING: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """From the programs' statistics to the batch's, and on to the running ones."""
    channel = (tl.program_id(0) * BC + tl.arange(0, BC))[None, :]
    known = channel < C
    weighted = tl.zeros([BK, BC], tl.float32)
    for first in range(0, PARTS, BK):
        part = (first + tl.arange(0, BK))[:, None]
        count = tl.load(count_ptr + part, mask=part < PARTS, other=0)
        weighted += count * tl.load(part_ptr + part * (2 * C) + channel, mask=(part < PARTS) & known, other=0)
    mean = tl.sum(weighted, axis=0, keep_dims=True) / R
    spread = tl.zeros([BK, BC], tl.float32)
    for first in range(0, PARTS, BK):
        part = (first + tl.arange(0, BK))[:, None]
        inside = (part < PARTS) & known
        count = tl.load(count_ptr + part, mask=part < PARTS, other=0)
        away = tl.load(part_ptr + part * (2 * C) + channel, mask=inside, other=0) - mean
        spread += tl.load(part_ptr + part * (2 * C) + C + channel, mask=inside, other=0) + count * away * away
    total = tl.sum(spread, axis=0, keep_dims=True)
    tl.store(mean_ptr + channel, mean, mask=known)
    tl.store(rstd_ptr + channel, 1 / tl.sqrt(total / R + eps), mask=known)
    if RUNNING:
        old = tl.load(running_mean_ptr + channel, mask=known, other=0).to(tl.float32)
        new = old + momentum * (mean - old)
        tl.store(running_mean_ptr + channel, new.to(running_mean_ptr.dtype.element_ty), mask=known)
        old = tl.load(running_var_ptr + channel, mask=known, other=0).to(tl.float32)
        new = old + momentum * (total / (R - 1) - old)
        tl.store(running_var_ptr + channel, new.to(running_var_ptr.dtype.element_ty), mask=known)


@triton.jit
def normalise(
    y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, mean_ptr, rstd_ptr, w_ptr, b_ptr, shortcut_ptr, out_ptr, sum_ptr,
    R, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, AFFINE: tl.constexpr,
    SHORTCUT: tl.constexpr, RELU: tl.constexpr, SUM: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """``act(norm(z) + shortcut)`` and, where a tile holds all channels of a place, its sum over them."""
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    row, there = last_rows(tl.program_id(0), R, BM)
    inside, at = there & known, row * (G * P) + channel
    y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
    sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    z = collided(y, sums, v, o, gain)
    scale = vector(rstd_ptr, channel, known, True, 0) * vector(w_ptr, channel, known, AFFINE, 1)
    out = (z - vector(mean_ptr, channel, known, True, 0)) * scale + vector(b_ptr, channel, known, AFFINE, 0)
    if SHORTCUT:
        out += tl.load(shortcut_ptr + at, mask=inside, other=0).to(tl.float32)
    if RELU:
        out = tl.maximum(out, 0)
    rounded = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, rounded, mask=inside)
    if SUM:
        seen = tl.where(inside, rounded.to(tl.float32), 0)
        total = tl.sum(tl.sum(seen, axis=2, keep_dims=True), axis=1, keep_dims=True)
        tl.store(sum_ptr + row, total, mask=there)


@triton.jit
def _upstream(
    d_ptr, e_ptr, out_ptr, at, row, inside, there, norm, EXTRA: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr
):
    """The gradient that reaches the norm: that of the output and of its sum, where the ReLU lets it through."""
    d = tl.load(d_ptr + at, mask=inside, other=0).to(tl.float32)
    if EXTRA:
        d += tl.load(e_ptr + row, mask=there, other=0)
    if RELU:
        if SHORTCUT:
            d = tl.where(tl.load(out_ptr + at, mask=inside, other=0).to(tl.float32) > 0, d, 0)
        else:
            d = tl.where(norm > 0, d, 0)
    return tl.where(inside, d, 0)


@triton.jit
def reduce(
    d_ptr, e_ptr, out_ptr, y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, mean_ptr, rstd_ptr, w_ptr, b_ptr,
    part_ptr, through_ptr, R, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, AFFINE: tl.constexpr,
    EXTRA: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr, WRITE: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Sums by channel of the gradient of the norm's output, plain and times the normalised z; and that gradient."""
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    mean, rstd = vector(mean_ptr, channel, known, True, 0), vector(rstd_ptr, channel, known, True, 0)
    scale, b = rstd * vector(w_ptr, channel, known, AFFINE, 1), vector(b_ptr, channel, known, AFFINE, 0)
    plain = tl.zeros([BM, BG, BP], tl.float32)
    times = tl.zeros([BM, BG, BP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0)):
        row, there = last_rows(block, R, BM)
        inside, at = there & known, row * (G * P) + channel
        y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
        sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
        away = collided(y, sums, v, o, gain) - mean
        d = _upstream(d_ptr, e_ptr, out_ptr, at, row, inside, there, away * scale + b, EXTRA, SHORTCUT, RELU)
        if WRITE:
            rounded = d.to(through_ptr.dtype.element_ty)
            tl.store(through_ptr + at, rounded, mask=inside)
            d = rounded.to(tl.float32)
        plain += d
        times += d * away
    part = part_ptr + tl.program_id(0) * (2 * G * P) + channel
    tl.store(part, tl.sum(plain, axis=0, keep_dims=True), mask=known)
    tl.store(part + G * P, tl.sum(times, axis=0, keep_dims=True) * rstd, mask=known)


@triton.jit
def gradients(
    d_ptr, e_ptr, y_ptr, s_ptr, v_ptr, o_ptr, g_ptr, factor, mean_ptr, rstd_ptr, w_ptr, b_ptr, sums_ptr,
    dy_ptr, ds_ptr, part_ptr, R, L, G, sn, sl, sg,
    P: tl.constexpr, OFFSET: tl.constexpr, GAIN: tl.constexpr, AFFINE: tl.constexpr,
    EXTRA: tl.constexpr, RELU: tl.constexpr,
    BM: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """From the gradient of the norm's output to those of y and of the sums, and by program of the unit's vectors."""
    group, channel, has_group, known = last_channels(tl.program_id(1), G, P, BG, BP)
    v, o, gain = unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET, GAIN)
    q = -v * gain
    mean, rstd = vector(mean_ptr, channel, known, True, 0), vector(rstd_ptr, channel, known, True, 0)
    scale, b = rstd * vector(w_ptr, channel, known, AFFINE, 1), vector(b_ptr, channel, known, AFFINE, 0)
    plain = scale * vector(sums_ptr, channel, known, True, 0) / R
    times = scale * rstd * vector(sums_ptr + G * P, channel, known, True, 0) / R
    with_s = tl.zeros([BM, BG, BP], tl.float32)
    with_1 = tl.zeros([BM, BG, BP], tl.float32)
    with_u = tl.zeros([BM, BG, BP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0)):
        row, there = last_rows(block, R, BM)
        inside, at = there & known, row * (G * P) + channel
        y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
        sums = last_sums(s_ptr, row, group, there & has_group, L, sn, sl, sg)
        u = argument(y, sums, v, o)
        away = y + gain * tl.maximum(u, 0) - mean
        d = _upstream(d_ptr, e_ptr, d_ptr, at, row, inside, there, away * scale + b, EXTRA, False, RELU)
        dz = tl.where(inside, scale * d - plain - times * away, 0)
        m = tl.where(u > 0, dz, 0)
        tl.store(dy_ptr + at, (dz + gain * m).to(dy_ptr.dtype.element_ty), mask=inside)
        tl.store(ds_ptr + row * G + group, tl.sum(m * q, axis=2, keep_dims=True), mask=there & has_group)
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
