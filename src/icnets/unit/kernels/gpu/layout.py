"""How the kernels see an activation ``(N, C, *L)`` and its sums ``(N, groups, *L)``, and in tiles of which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Layout", "blocks", "next_power_of_2", "sharing"]

_TILE = 2048  # elements of the activation that a program of 4 warps holds at a time: 16 a thread, three such at a time
_WIDEST = 4096  # channels of a group beyond which a tile would be less than a place of it


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is n or more."""
    return 1 << max(n - 1, 0).bit_length()


def blocks(n: int, size: int) -> int:
    """How many blocks of ``size`` cover n."""
    return -(-n // size)


def sharing(like: Tensor, count: int) -> int:
    """How many programs share ``count`` blocks, each taking several one after the other.

    Enough to fill the device evenly, and few enough for their partial sums to be small beside the blocks.
    """
    if not like.is_cuda:
        return max(1, min(count, 3))
    return max(1, min(count // 16, 8 * torch.cuda.get_device_properties(like.device).multi_processor_count))


@dataclass(frozen=True)
class Layout:
    """Sizes and strides. ``last``: the channels come last in memory; if not, the places do."""

    batch: int
    channels: int
    places: int
    groups: int
    last: bool
    strides: tuple[int, int, int]  # of the sums: by example, place and group

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> Self | None:
        """The layout of a dense ``y``, in either memory format, with ``s``; None where the kernels have none for it."""
        n, c = y.shape[:2]
        if y.numel() == 0:
            return None
        last = not y.is_contiguous()
        if last and not y.movedim(1, -1).is_contiguous():
            return None
        step = _place_stride(s)
        if step is None or (last and c // s.size(1) > _WIDEST):
            return None
        return cls(n, c, y.numel() // (n * c), s.size(1), last, (s.stride(0), step, s.stride(1)))

    @property
    def per_group(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def rows(self) -> int:
        """Examples times places."""
        return self.batch * self.places

    def last_tile(self) -> tuple[int, int, int]:
        """Places, groups and channels of a group of a tile with channels last, which holds groups whole."""
        wide = next_power_of_2(self.per_group)
        groups = min(next_power_of_2(self.groups), max(512 // wide, 1))
        return min(max(_TILE // (groups * wide), 1), next_power_of_2(self.rows)), groups, wide

    def first_tile(self) -> tuple[int, int]:
        """Channels and places of a tile with places last."""
        places = min(max(next_power_of_2(self.places), 16), 512)
        return min(next_power_of_2(self.per_group), _TILE // places), places

    def empty_sums(self, y: Tensor) -> Tensor:
        """Memory for sums, in single precision, ``(N, groups, *L)``, dense in the activation's format."""
        if self.last:
            return y.new_empty([self.batch, *y.shape[2:], self.groups], dtype=torch.float32).movedim(-1, 1)
        return y.new_empty([self.batch, self.groups, *y.shape[2:]], dtype=torch.float32)


def _place_stride(s: Tensor) -> int | None:
    """The stride of ``s`` from place to place, if there is one."""
    step, expected = None, 0
    for size, stride in reversed(list(zip(s.shape[2:], s.stride()[2:], strict=True))):
        if size > 1:
            step, expected = (stride, stride) if step is None else (step, expected)
            if stride != expected:
                return None
        expected *= size
    return 1 if step is None else step
