"""Deployed units as engines like them: everything a convolution, or what an engine computes inside of one.

A deployed unit is ``sign * prelu(v, slope) + collision * s + offset``. As written, the rank-one term is a product and
two sums that broadcast: engines take a pass over memory for each, and leave their blocked layout for them. Here ``s``
is a convolution with a kernel of ones and one output channel per group, and the rank-one term is a second one, whose
bias is the offset. Engines add the rest to its result in place.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from icnets.unit.deployed import FusedICConv1d, FusedICConv2d, FusedICConv3d
from icnets.unit.subclasses import has_own_forward

RANK_ONE = "rank_one"  # the name of a module, and so part of its weights' names

_KINDS: dict[type[nn.Module], Any] = {FusedICConv1d: nn.Conv1d, FusedICConv2d: nn.Conv2d, FusedICConv3d: nn.Conv3d}


class _Lowered(nn.Module):
    """A deployed convolution, equal to it up to rounding."""

    def __init__(self, unit: Any, scale_by_convolution: bool) -> None:
        super().__init__()
        self.unit = unit
        self.total: Any = None
        self.rank_one: Any = None
        self.scale: Any = None
        if unit.collision is not None:
            if scale_by_convolution and unit.sign is not None:  # it comes last: engines put an activation into it
                unit.collision = unit.sign * unit.collision
                unit.offset = None if unit.offset is None else unit.sign * unit.offset
            self.total, self.rank_one = _rank_one(unit)
            unit.collision = unit.offset = None
        if scale_by_convolution and (unit.sign is not None or unit.offset is not None):
            channels = unit.out_channels
            sign = torch.ones(channels) if unit.sign is None else unit.sign
            self.scale = _constant(unit, channels, channels, sign, unit.offset)
            unit.sign = unit.offset = None

    def forward(self, input: Tensor) -> Tensor:  # torch's name, which callers may use
        """``(N, C_in, *L)`` or ``(C_in, *L)`` to ``([N,] C_out, *L_out)``."""
        z: Tensor = self.unit(input)
        if self.rank_one is not None:
            z = z + self.rank_one(self.total(input))
        return z if self.scale is None else self.scale(z)


class _Bent(nn.Module):
    """A deployed convolution with slopes of each channel's own: a scaled v, a scaled ``relu(v)``, and the rest.

    For an engine whose PReLU leaves its blocked layout. A scale may be negative, so there is no pass for the signs.
    """

    def __init__(self, unit: Any) -> None:
        super().__init__()
        channels, own = unit.out_channels, unit.slope
        sign = torch.ones_like(own) if unit.sign is None else unit.sign
        self.total: Any = None
        self.rank_one: Any = None
        offset = unit.offset
        if unit.collision is not None:
            self.total, self.rank_one = _rank_one(unit)
            offset = None
        self.bend = _constant(unit, channels, channels, sign * (1 - own), None)
        self.straight = _constant(unit, channels, channels, sign * own, offset)
        unit.slope = unit.sign = unit.collision = unit.offset = None
        self.unit = unit  # a convolution by now

    def forward(self, input: Tensor) -> Tensor:  # torch's name, which callers may use
        """``(N, C_in, *L)`` or ``(C_in, *L)`` to ``([N,] C_out, *L_out)``."""
        v: Tensor = self.unit(input)
        z: Tensor = self.bend(v.relu()) + self.straight(v)
        return z if self.rank_one is None else z + self.rank_one(self.total(input))


def _rank_one(unit: Any) -> tuple[nn.Module, nn.Module]:
    """What makes the sums over channels, and ``collision * s + offset`` of them."""
    groups, window = unit.groups, unit.weight[0, 0].numel()
    if groups == unit.in_channels and (groups > 1 or window > 1):  # depthwise
        return nn.Identity(), _constant(unit, groups, groups, unit.collision / window, unit.offset, window=True)
    # The window, too, belongs to one of the two: to the sum if there are few input channels. The sum costs about as
    # much as 8 of the unit's own output channels, as engines compute in blocks, the rank-one term as one of its input
    # channels. A stride alone always belongs to the sum, which then reads less.
    early = window == 1 or (groups == 1 and 8 * unit.in_channels < unit.out_channels)
    ones = torch.ones(groups)
    total = _constant(unit, unit.in_channels, groups, ones, None, window=early)
    return total, _constant(unit, groups, groups, unit.collision / window, unit.offset, window=not early)


def _constant(
    unit: Any, in_channels: int, groups: int, values: Tensor, bias: Tensor | None, window: bool = False
) -> nn.Module:
    """A convolution whose kernel is ``values``, one per output channel, everywhere; with the unit's window or none."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    options: dict[str, Any] = {name: getattr(unit, name) for name in names} if window else {"kernel_size": 1}
    kind = next(conv for fused, conv in _KINDS.items() if isinstance(unit, fused))
    options |= {"groups": groups, "bias": bias is not None}
    conv: Any = torch.nn.utils.skip_init(kind, in_channels, len(values), **options)
    conv.requires_grad_(False)
    shape = (-1,) + (1,) * (conv.weight.dim() - 1)
    conv.weight.copy_(values.view(shape).expand_as(conv.weight))
    if bias is not None:
        conv.bias.copy_(bias)
    return cast(nn.Module, conv)


def lower_(network: nn.Module, scale_by_convolution: bool) -> nn.Module:
    """Puts the deployed convolutions of ``network`` into this form, in place; returns the network, or its replacement.

    Args:
        network: as :func:`icnets.deploy.fuse.fuse_` leaves it, on the CPU. Its parameters aren't kept.
        scale_by_convolution: write the signs as a depthwise convolution, for an engine that would leave its blocked
            layout for a product.
    """
    parents = list(network.modules())
    # A unit with a forward pass of its own, which looks at its input to pad it, stays as it is: equal, but slower.
    units = [unit for unit in parents for kind in _KINDS if isinstance(unit, kind) and not has_own_forward(unit, kind)]
    bent = {unit: scale_by_convolution and cast(Any, unit).slope is not None for unit in units}
    lowered = {unit: _Bent(unit) if bent[unit] else _Lowered(unit, scale_by_convolution) for unit in units}
    for parent in parents:
        for name, child in parent._modules.items():
            if child in lowered:
                setattr(parent, name, lowered[child])
    return lowered.get(network, network)
