"""What the kernels share: where the elements of a tile lie, and the argument of the rectifier."""

# No "from __future__ import annotations" in modules of kernels: Triton reads their annotations.
import triton
import triton.language as tl

__all__ = [
    "argument",
    "collided",
    "first_sums",
    "last_channels",
    "last_rows",
    "last_sums",
    "store_parts",
    "unit_vectors",
    "vector",
]


@triton.jit
def vector(ptr, channel, known, PRESENT: tl.constexpr, OTHERWISE: tl.constexpr):
    """A vector's entries for the channels of a tile, or ``OTHERWISE`` for each where there is none."""
    if PRESENT:
        return tl.load(ptr + channel, mask=known, other=0).to(tl.float32)
    else:
        return tl.full(channel.shape, OTHERWISE, tl.float32)


@triton.jit
def unit_vectors(v_ptr, o_ptr, g_ptr, factor, channel, known, OFFSET: tl.constexpr, GAIN: tl.constexpr):
    """The unit's w' with the factor in it, offset and gain for the channels of a tile."""
    v = factor * vector(v_ptr, channel, known, True, 0)
    return v, vector(o_ptr, channel, known, OFFSET, 0), vector(g_ptr, channel, known, GAIN, 1)


@triton.jit
def argument(y, sums, v, offset):
    """What the rectifier is applied to; the factor is in v."""
    return y - v * sums + offset


@triton.jit
def collided(y, sums, v, offset, gain):
    """The unit's output."""
    return y + gain * tl.maximum(argument(y, sums, v, offset), 0)


@triton.jit
def store_parts(part, channels, known, with_s, with_1, with_u, OFFSET: tl.constexpr, GAIN: tl.constexpr):
    """One program's share of the gradients of the unit's vectors, one behind the other."""
    tl.store(part, with_s, mask=known)
    if OFFSET:
        tl.store(part + channels, with_1, mask=known)
    if GAIN:
        tl.store(part + 2 * channels, with_u, mask=known)


# -- channels last: (places, groups, channels of a group) --------------------------------------------------------------


@triton.jit
def last_channels(block, G, P: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr):
    """Groups ``(1, BG, 1)`` and channels ``(1, BG, BP)`` of a block of groups; which of them there are."""
    group = block * BG + tl.arange(0, BG)[None, :, None]
    member = tl.arange(0, BP)[None, None, :]
    return group, group * P + member, group < G, (group < G) & (member < P)


@triton.jit
def last_rows(block, R, BM: tl.constexpr):
    """Rows ``(BM, 1, 1)``, examples times places, of a block of them; which of them there are."""
    row = (block * BM + tl.arange(0, BM)).to(tl.int64)[:, None, None]
    return row, row < R


@triton.jit
def last_sums(s_ptr, row, group, inside, L, sn, sl, sg):
    """Sums ``(BM, BG, 1)``."""
    example = row.to(tl.int32) // L  # 64 bits are for offsets, and slow to divide
    place = row - example * L
    return tl.load(s_ptr + example.to(tl.int64) * sn + place * sl + group * sg, mask=inside, other=0).to(tl.float32)


# -- places last: (channels of a group, places) ------------------------------------------------------------------------


@triton.jit
def first_sums(s_ptr, example, group, place, inside, sn, sl, sg):
    """Sums ``(1, BL)``."""
    return tl.load(s_ptr + example * sn + group * sg + place * sl, mask=inside, other=0).to(tl.float32)
