"""How the kernels see an activation ``(N, C, *L)`` and its sums ``(N, groups, *L)``, and in tiles of which size."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_TILE = 2048  # elements of the activation that a program of 4 warps holds at a time: 16 a thread, three such at a time


def _next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


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
        last = not y.is_contiguous()
        if y.numel() == 0 or (last and not y.movedim(1, -1).is_contiguous()):
            return None
        n, c = y.shape[:2]
        by_example, by_group, by_place = s.flatten(2).stride()
        return cls(n, c, y[0, 0].numel(), s.size(1), last, (by_example, by_place, by_group))

    @property
    def per_group(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    def tile(self) -> tuple[int, int, int]:
        """Groups, channels of a group and places of a tile, most along what comes last in memory."""
        members, places = _next_power_of_2(self.per_group), _next_power_of_2(self.places)
        if not self.last:
            places = min(max(places, 16), 512)
            return 1, min(members, _TILE // places), places
        members = min(members, 64)
        groups = min(_next_power_of_2(self.groups), 64 // members)
        return groups, members, min(places, _TILE // (groups * members))

    def empty_sums(self, y: Tensor) -> Tensor:
        """Memory for sums, in single precision, ``(N, groups, *L)``, dense in the activation's format."""
        if self.last:
            return y.new_empty([self.batch, *y.shape[2:], self.groups], dtype=torch.float32).movedim(-1, 1)
        return y.new_empty([self.batch, self.groups, *y.shape[2:]], dtype=torch.float32)
