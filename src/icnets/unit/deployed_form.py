"""The numbers of a deployed layer: an IC unit, and what follows it, as a convolution with a plain post-op.

With ``u = conv(x, W - w' * 1) + b1``, the unit is ``z = u + gain * relu(u) + w' * s - b1 + b2``: two slopes
in ``u``, so a scaled convolution followed by PReLU. A batch norm behind it, ``scale * z + shift`` per
channel, folds in exactly, whatever the sign of ``scale``. Computed in float64 and rounded once.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from icnets.unit.collision import output_channels
from icnets.unit.layers import IC_LAYERS
from icnets.unit.recording import Convolution


@dataclass(frozen=True)
class Affine:
    """What follows a unit, per output channel: ``scale * z + shift``, both ``(C_out,)`` float64 on the CPU."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Deployed:
    """``out = sign * prelu(conv(x, weight) + bias, slope) + collision * s + offset``, in float64 on the CPU.

    ``s`` is the mean over the window of the sum over the channels, so ``collision`` has the window's size in it; behind
    a transposed convolution it is the sum.
    """

    weight: Tensor
    bias: Tensor
    linear: bool = False  # nothing but weight and bias: a plain layer's, or the branch is silent everywhere
    slope: Tensor = field(default_factory=lambda: torch.ones(1))
    collision: Tensor = field(default_factory=lambda: torch.zeros(1))
    offset: Tensor = field(default_factory=lambda: torch.zeros(1))
    sign: Tensor = field(default_factory=lambda: torch.ones(1))


def _exact(vector: Tensor | None, like: Tensor) -> Tensor:
    """Any device's parameter in float64 on the CPU (some devices have no float64); zeros for an absent one."""
    if vector is None:
        return torch.zeros(like.shape[0], dtype=torch.float64)
    return vector.detach().to("cpu", torch.float64)


def _transposed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def _per_filter(layer: Any, values: Tensor) -> Tensor:
    """``(C_out,)`` in a shape that broadcasts against the layer's weight."""
    if _transposed(layer):  # (C_in, C_out / groups, *kernel)
        values = values.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
        return values.view(*values.shape, *[1] * len(layer.kernel_size))
    return values.view(-1, *[1] * (layer.weight.dim() - 1))


def solve(layer: Any, conv: Convolution, after: Affine | None) -> Deployed:
    weight, channels = _exact(conv.weight, conv.weight), conv.weight.new_empty(output_channels(layer))
    outer, ones = _exact(conv.bias, channels), torch.ones(len(channels), dtype=torch.float64)
    a, shift = (ones, 0 * ones) if after is None else (after.scale, after.shift)
    linear = Deployed(weight * _per_filter(layer, a), a * outer + shift, linear=True)
    if not isinstance(layer, IC_LAYERS):
        return linear
    collision, inner_bias, branch = layer.vectors()
    gain = ones if branch is None else _exact(branch, channels)
    if bool(((gain == 0) | (a == 0)).all()):
        return linear
    # A silent branch needs neither w' nor b1: they cancel, exactly so when left out.
    w_prime = torch.where(gain == 0, 0.0, _exact(collision, channels) * layer.sum_scale)
    inner = torch.where(gain == 0, 0.0, _exact(inner_bias, channels))
    sign, factor, slope = _sides(a, gain)
    return Deployed(
        weight=(weight - _per_filter(layer, w_prime)) * _per_filter(layer, factor),
        bias=inner * factor,
        slope=slope,
        collision=a * w_prime * (1 if _transposed(layer) else math.prod(weight.shape[2:])),
        offset=a * (outer - inner) + shift,
        sign=sign,
    )


def _sides(a: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sign * prelu(factor * u, slope)`` equal to ``a * (u + gain * relu(u))``, all per channel.

    The latter has slope ``a * (1 + gain)`` above 0 and ``a`` below. PReLU's upper slope is 1, so the convolution takes
    the slope of whichever side becomes the upper one; both choices work if the sign is free. The slope
    1 / (1 + gain) depends on no batch norm: one number for the layer makes a LeakyReLU, which runs in place.
    """
    active = gain[a != 0]
    if bool((active == active[0]).all()):
        sign = torch.where((a < 0) == (active[0] > -1), -1.0, 1.0)
    else:  # slopes differ anyhow: as few signs as possible
        sign = torch.where((a > 0) & (gain <= -1), -1.0, 1.0)
    b = a * sign
    factor = torch.where(b > 0, b * (1 + gain), b)
    slope = torch.where(b > 0, 1 / (1 + gain), 1 + gain)
    # A channel that is constant may have any slope and sign: such as others have.
    return torch.where(a == 0, 1.0, sign), factor, torch.where(a == 0, slope[a != 0][0], slope)
