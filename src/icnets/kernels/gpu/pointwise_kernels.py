"""A deployed 1x1 convolution, channels last, as one matrix product that adds up its input on the way (ours)."""

# No "from __future__ import annotations" in modules of kernels: Triton reads their annotations.
import triton
import triton.language as tl

from icnets.kernels.gpu.tile import vector

__all__ = ["pointwise"]


@triton.jit
def pointwise(
    x_ptr, w_ptr, bias_ptr, slope_ptr, sign_ptr, v_ptr, o_ptr, shortcut_ptr, out_ptr, uniform_slope,
    M, N, K, HO, WO, H, W,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, SLOPE: tl.constexpr, SIGN: tl.constexpr,
    COLLISION: tl.constexpr, OFFSET: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``act(sign * prelu(x w + bias) + v * s + o + shortcut)`` for a block of places and of output channels."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    place = row
    if STEP_H > 1 or STEP_W > 1:  # the place that is seen
        across, rest = row % WO, row // WO
        place = (rest // HO * H + rest % HO * STEP_H) * W + across * STEP_W
    k = tl.arange(0, BK)
    x_at = x_ptr + place.to(tl.int64)[:, None] * K + k[None, :]
    w_at = w_ptr + channel[None, :] * K + k[:, None]
    ones = tl.full([BK, 16], 1.0, x_ptr.dtype.element_ty)
    v = tl.zeros([BM, BN], tl.float32)
    s = tl.zeros([BM, 16], tl.float32)
    for first in range(0, K, BK):
        x = tl.load(x_at + first, mask=(row[:, None] < M) & (first + k[None, :] < K), other=0)
        w = tl.load(w_at + first, mask=(channel[None, :] < N) & (first + k[:, None] < K), other=0)
        v = tl.dot(x, w, v)
        if COLLISION:
            s = tl.dot(x, ones, s)  # the tile is in shared memory, where the tensor cores read it: a sum would not
    known = channel < N
    inside = (row[:, None] < M) & known[None, :]
    v += vector(bias_ptr, channel, known, True, 0)[None, :]
    if SLOPE:
        r = tl.where(v > 0, v, v * vector(slope_ptr, channel, known, True, 0)[None, :])
    else:
        r = tl.where(v > 0, v, v * uniform_slope)
    if SIGN:
        r *= vector(sign_ptr, channel, known, True, 0)[None, :]
    if COLLISION:
        total = tl.sum(s, axis=1) / 16  # of 16 equal columns
        r += vector(v_ptr, channel, known, True, 0)[None, :] * total[:, None]
    if OFFSET:
        r += vector(o_ptr, channel, known, True, 0)[None, :]
    at = row.to(tl.int64)[:, None] * N + channel[None, :]
    if SHORTCUT:
        r += tl.load(shortcut_ptr + at, mask=inside, other=0).to(tl.float32)
    if RELU:
        r = tl.maximum(r, 0)
    tl.store(out_ptr + at, r.to(out_ptr.dtype.element_ty), mask=inside)
