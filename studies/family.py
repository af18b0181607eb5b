"""Units between IC and maxout: each convolution's output y meets a second linear piece, in front of the norm.

    z = y + gain · relu(a · y + p)

With a = 1 and p = b1 - w' s that is IC, whose p has one fixed sum s. Here p is A s + b1 with r learned sums
s = conv(x, B) (``LearnedSums``), or a whole convolution of its own (``Maxout``). With a = -1 and gain = 1, z is
max(y, p). A gain that starts at 0 leaves a trained network's function as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FReLU", "LearnedSums", "Maxout", "add_unit_"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


class _Pieces(nn.Module):
    """A convolution and a second piece of the same shape, which a subclass computes from its input."""

    def __init__(self, conv: Any, own: bool, gain: float | None) -> None:
        super().__init__()
        self.conv, self.sign = conv, -1.0 if own else 1.0
        self.gain = None if gain is None else nn.Parameter(torch.full((conv.out_channels,), gain))

    def second(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        branch = F.relu(self.sign * y + self.second(x))
        return y + (branch if self.gain is None else branch * _column(self.gain, y))


def _column(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (like.dim() - 2))


def _like(conv: Any, out: int, *, bias: bool) -> Any:
    """A convolution of the same window with ``out`` filters, newly drawn, that sees all channels of a group's input."""
    size = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return type(conv)(conv.in_channels, out, *size, bias=bias)


class LearnedSums(_Pieces):
    """p = A (B ∗ x) + b1, of rank r: B has ``rank`` filters, A is ``(C_out, rank)``, b1 starts at 0.

    Args:
        conv: the convolution; without groups.
        rank: of p, at least 1.
        own: a = -1, a second piece that doesn't contain y: A is then drawn so that p varies as s does. Otherwise a = 1,
            as in IC, and A starts at 0, as w' does.
        gain: None for 1, or where a learned one starts.

    In: what ``conv`` takes; out: of the shape of its output.
    """

    def __init__(self, conv: Any, rank: int, own: bool = False, gain: float | None = None) -> None:
        super().__init__(conv, own, gain)
        self.sums = _like(conv, rank, bias=False)
        self.mix = nn.Parameter(torch.zeros(conv.out_channels, rank))
        if own:
            nn.init.normal_(self.mix, std=rank**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(conv.out_channels))

    def second(self, x: Tensor) -> Tensor:
        s = self.sums(x)
        return torch.einsum("cr,nr...->nc...", self.mix, s) + _column(self.inner_bias, s)


class Maxout(_Pieces):
    """p is a convolution of its own, with twice the parameters and MACs: the upper end of the family."""

    def __init__(self, conv: Any, gain: float | None = None) -> None:
        super().__init__(conv, True, gain)
        self.other = _like(conv, conv.out_channels, bias=True)

    def second(self, x: Tensor) -> Tensor:
        p: Tensor = self.other(x)
        return p


class FReLU(nn.Module):
    """max(y, BN(D ∗ y)) with D depthwise, of width 3 (arXiv 2007.11824): the second piece is made of y, not of x."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        channels = conv.out_channels
        norm = nn.BatchNorm1d if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d
        self.conv, self.norm = conv, norm(channels)
        self.depthwise = type(conv)(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.maximum(y, self.norm(self.depthwise(y)))


def add_unit_(model: nn.Module, kind: str | None, **options: Any) -> None:
    """Makes units of the convolutions of ``model`` that have no groups, in place.

    Args:
        model: any network of Conv1d and Conv2d.
        kind: sums, maxout or frelu; None: nothing is changed.
        **options: of the unit, such as rank.

    Raises ValueError for an unknown kind, TypeError for options that it doesn't take.
    """
    if kind is None:
        return
    kinds: dict[str, Any] = {"sums": LearnedSums, "maxout": Maxout, "frelu": FReLU}
    if kind not in kinds:
        raise ValueError(f"unit is {kind!r}; it must be one of {', '.join(kinds)}")
    for name, module in list(model.named_modules()):
        if isinstance(module, _CONVOLUTIONS) and module.groups == 1:
            model.set_submodule(name, kinds[kind](module, **options))
