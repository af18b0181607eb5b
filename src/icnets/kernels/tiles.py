"""Tiles of an activation that fit in a CPU's cache, in either memory format, and reductions over them (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LIMIT", "ChannelSums", "GroupSums", "Rows", "Tile"]

# Elements of a tile. Two tiles of float32 at work are 8 MiB: a share of a last-level cache that is often there.
LIMIT = 1 << 20


@dataclass(frozen=True)
class Tile:
    """A box of rows and, in the contiguous format, of channels; called on a tensor of rows, the part of it."""

    rows: slice
    channels: slice

    def __call__(self, t: Tensor, wide: bool = True) -> Tensor:
        """The part of ``t``; of sums, which have no channels, with ``wide=False``."""
        return t[self.rows, self.channels] if wide else t[self.rows]


class Rows:
    """An activation ``(N, C, *L)`` as three dimensions, so that a tile of it is a slice.

    Contiguous: ``(N * groups, C / groups, prod(L))``. Channels last: ``(N * prod(L), groups, C / groups)``. Vectors
    ``(C,)`` and sums ``(N, groups, *L)`` come in shapes that broadcast with it.
    """

    def __init__(self, y: Tensor, groups: int) -> None:
        self.shape, self.groups = y.shape, groups
        n, c = y.shape[:2]
        self.batch, self.per_group = n, c // groups
        places = y.numel() // (n * c)
        self.channels_last = not y.is_contiguous()
        if self.channels_last:
            self.box = (n * places, groups, self.per_group)
        else:
            self.box = (n * groups, self.per_group, places)
        # On other devices than CPUs one long pass is better.
        self.limit = LIMIT if y.device.type == "cpu" else y.numel()

    def of(self, t: Tensor) -> Tensor:
        """A view of a tensor of the activation's shape and memory format."""
        return (t.movedim(1, -1) if self.channels_last else t).view(self.box)

    def read(self, t: Tensor) -> Tensor:
        """A tensor of the activation's shape, in any memory format: a copy if need be."""
        return (t.movedim(1, -1) if self.channels_last else t).reshape(self.box)

    def sums(self, s: Tensor) -> Tensor:
        """``(N, groups, *L)`` as ``(rows, 1, places)`` or ``(rows, groups, 1)``."""
        if self.channels_last:
            return s.movedim(1, -1).reshape(self.box[0], self.groups, 1)
        return s.reshape(self.box[0], 1, self.box[2])

    def vector(self, v: Tensor) -> Tensor:
        """``(C,)``, one entry a channel, expanded over the rows."""
        if self.channels_last:
            return v.view(1, self.groups, self.per_group).expand(self.box)
        split = v.view(1, self.groups, self.per_group, 1)
        return split.expand(self.batch, *split.shape[1:]).reshape(self.box[0], self.per_group, 1)

    def tiles(self) -> Iterator[Tile]:
        """Tiles that cover the activation."""
        rows, channels, places = self.box
        if channels * places <= self.limit or self.channels_last:
            step = max(self.limit // (channels * places), 1)
            for r in range(0, rows, step):
                yield Tile(slice(r, min(r + step, rows)), slice(None))
        else:
            step = max(self.limit // places, 1)
            for r in range(rows):
                for c in range(0, channels, step):
                    yield Tile(slice(r, r + 1), slice(c, min(c + step, channels)))

    def scratch(self, like: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Gives memory of a tile's shape, the same for every tile: fresh memory costs more than arithmetic."""
        _, channels, places = self.box
        row = channels * places if channels * places <= self.limit or self.channels_last else places
        memory = torch.empty(min(max(self.limit, row), like.numel()), dtype=dtype, device=like.device)
        return lambda part: memory[: part.numel()].view(part.shape)


class ChannelSums:
    """Sums per channel ``(C,)`` of tiles, plain or weighted by sums as :meth:`Rows.sums` gives them."""

    def __init__(self, rows: Rows, like: Tensor) -> None:
        self.rows = rows
        self.sums = like.new_zeros(rows.box[1:] if rows.channels_last else rows.box[:2])

    def add(self, m: Tensor, tile: Tile, weights: Tensor | None = None) -> None:
        """Adds the tile ``m``, times the tile ``weights``."""
        if not self.rows.channels_last:  # per row and channel: what bmm and sum give
            part = m.sum(-1) if weights is None else torch.bmm(m, weights.transpose(1, 2))[:, :, 0]
            self.sums[tile.rows, tile.channels] = part
        elif weights is None:
            self.sums.add_(m.sum(0))
        elif self.rows.groups == 1:
            self.sums.addmm_(weights[:, 0].T, m[:, 0])
        else:
            self.sums.add_((m * weights).sum(0))

    def result(self) -> Tensor:
        """The sums, ``(C,)``."""
        if self.rows.channels_last:
            return self.sums.flatten()
        return self.sums.view(self.rows.batch, -1).sum(0)


class GroupSums:
    """Sums over each group's channels of ``v * m`` for tiles ``m`` and a vector ``v`` ``(C,)``: ``(N, groups, *L)``."""

    def __init__(self, rows: Rows, v: Tensor) -> None:
        self.rows, self.v = rows, rows.vector(v)
        m, groups = rows.box[0], rows.groups
        self.sums = v.new_zeros((m, groups, 1) if rows.channels_last else (m, 1, rows.box[2]))

    def add(self, m: Tensor, tile: Tile) -> None:
        """Adds the tile ``m``."""
        v, sums = tile(self.v), tile(self.sums, wide=False)
        if self.rows.per_group == 1:  # depthwise: nothing to sum over
            torch.mul(m, v, out=sums)
        elif not self.rows.channels_last:
            sums.baddbmm_(v.transpose(1, 2), m)
        elif self.rows.groups == 1:
            torch.mv(m[:, 0], v[0, 0], out=sums.flatten())
        else:
            torch.sum(m * v, -1, keepdim=True, out=sums)

    def result(self) -> Tensor:
        """The sums, ``(N, groups, *L)``."""
        n, groups, places = self.rows.batch, self.rows.groups, self.rows.shape[2:]
        if self.rows.channels_last:
            return self.sums.view(n, *places, groups).movedim(-1, 1)
        return self.sums.view(n, groups, *places)
