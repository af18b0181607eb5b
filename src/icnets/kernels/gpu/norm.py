"""A collision with the batch norm, the shortcut and the ReLU behind it, for training, and its gradients (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.kernels import formula
from icnets.kernels.gpu import norm_kernels as kernels
from icnets.kernels.gpu.collide import like, vector_gradients
from icnets.kernels.gpu.layout import Layout, blocks, next_power_of_2, sharing

__all__ = ["Norm", "Unit", "backward", "by_formula", "forward", "statistics"]


@dataclass(frozen=True)
class Unit:
    """A unit before its collision: y ``(N, C, *L)``, channels last, s ``(N, groups, *L)`` and vectors ``(C,)``."""

    y: Tensor
    s: Tensor
    collision: Tensor
    offset: Tensor | None
    gain: Tensor | None
    factor: float
    layout: Layout

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the kernels take them; what is absent is never read."""
        absent = self.collision
        vectors = (self.collision, absent if self.offset is None else self.offset)
        return (self.y, self.s, *vectors, absent if self.gain is None else self.gain)

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the kernels take them."""
        layout = self.layout
        return (layout.rows, layout.places, layout.groups, *layout.strides, layout.per_group)

    def flags(self, **more: Any) -> dict[str, Any]:
        """As the kernels take them, with the size of a tile."""
        bm, bg, bp = self.layout.last_tile()
        present = {"OFFSET": self.offset is not None, "GAIN": self.gain is not None}
        return {**present, **more, "BM": bm, "BG": bg, "BP": bp}

    def grid(self, shared: bool) -> tuple[int, int]:
        """Programs by rows and by groups; ``shared``: each takes several blocks of rows."""
        bm, bg, _ = self.layout.last_tile()
        rows = blocks(self.layout.rows, bm)
        return sharing(self.y, rows) if shared else rows, blocks(self.layout.groups, bg)


@dataclass(frozen=True)
class Norm:
    """The batch norm: its vectors ``(C,)``, those of this batch in single precision."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    eps: float

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """As the kernels take them."""
        absent = self.mean
        affine = (absent if self.weight is None else self.weight, absent if self.bias is None else self.bias)
        return (self.mean, self.rstd, *affine)


def statistics(
    unit: Unit, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of z by channel ``(C,)``; updates the running ones in place."""
    shared, columns = unit.grid(shared=True)
    c = unit.layout.channels
    part = unit.y.new_empty(shared, 2, c, dtype=torch.float32)
    count = unit.y.new_empty(shared, dtype=torch.float32)
    kernels.statistics[(shared, columns)](*unit.arguments, unit.factor, part, count, *unit.sizes, **unit.flags())
    mean, rstd = torch.empty_like(part[0, 0]), torch.empty_like(part[0, 0])
    running = running_mean is not None and running_var is not None
    kept = (running_mean, running_var) if running else (mean, rstd)
    wide = min(next_power_of_2(c), 64)
    sizes = (momentum, eps, unit.layout.rows, c, shared)
    kernels.finish[(blocks(c, wide),)](part, count, mean, rstd, *kept, *sizes, RUNNING=running, BK=32, BC=wide)
    return mean, rstd


def forward(unit: Unit, norm: Norm, shortcut: Tensor | None, relu: bool) -> tuple[Tensor, Tensor | None]:
    """``act(norm(z) + shortcut)``, and its sums over channels ``(N, 1, *L)`` where one tile holds them."""
    out, total = torch.empty_like(unit.y), None
    grid = unit.grid(shared=False)
    if grid[1] == 1:
        total = unit.y.new_empty([unit.layout.batch, 1, *unit.y.shape[2:]], dtype=torch.float32)
    given = (out if shortcut is None else shortcut, out, out if total is None else total)
    flags = unit.flags(AFFINE=norm.weight is not None, SHORTCUT=shortcut is not None, RELU=relu, SUM=total is not None)
    kernels.normalise[grid](*unit.arguments, unit.factor, *norm.arguments, *given, *unit.sizes, **flags)
    return out, total


def backward(
    d: Tensor, extra: Tensor | None, out: Tensor | None, unit: Unit, norm: Norm, shortcut: bool, relu: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of y, s, collision, offset, gain, weight, bias and the shortcut.

    ``d`` and ``extra`` are those of :func:`forward`'s two results; ``out``, the first of them, is read where there is a
    shortcut and a ReLU.
    """
    d = like(d, unit.y)
    shared, columns = unit.grid(shared=True)
    layout, affine, c = unit.layout, norm.weight is not None, unit.layout.channels
    part = unit.y.new_empty(shared, 3, c, dtype=torch.float32)
    write = shortcut and (relu or extra is not None)
    through = torch.empty_like(unit.y) if write else d
    given = (d, d if extra is None else extra.contiguous(), d if out is None else out)
    flags = {"AFFINE": affine, "EXTRA": extra is not None, "RELU": relu}
    kernels.reduce[(shared, columns)](
        *given, *unit.arguments, unit.factor, *norm.arguments, part, through, *unit.sizes,
        **unit.flags(**flags, SHORTCUT=shortcut, WRITE=write),
    )  # fmt: skip
    sums = part.view(-1)[: shared * 2 * c].view(shared, 2, c).sum(0)
    dy, ds = torch.empty_like(unit.y), layout.empty_sums(unit.y)
    if write:
        flags |= {"EXTRA": False, "RELU": False}
    kernels.gradients[(shared, columns)](
        through, given[1], *unit.arguments, unit.factor, *norm.arguments, sums, dy, ds, part, *unit.sizes,
        **unit.flags(**flags),
    )  # fmt: skip
    dv, do, dg = vector_gradients(part, unit.factor, unit.offset, unit.gain)
    return dy, ds, dv, do, dg, sums[1] if affine else None, sums[0] if affine else None, through if shortcut else None


def by_formula(unit: Unit, norm: Norm | None) -> Tensor:
    """``norm(z)``, or z without a norm, by operators that autograd follows."""
    z = formula.collide(unit.y, unit.s, unit.collision, unit.offset, unit.gain, unit.factor)
    if norm is None:
        return z
    return F.batch_norm(z, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
