"""The Inter-layer Collision (IC) unit on one page.

For one output channel, with ``y = conv(x, W)`` and ``s`` the sum of the inputs in the receptive field::

    z = y + gain * relu(y - w' * s + inner_bias) + bias

Paper (arXiv 2011.11271, section on the IC neuron; arXiv 2102.03495): ``gain = 1``, ``w'`` one learned scalar per
output channel, ``inner_bias`` is b1 and ``bias`` is b2. Ours: ``gain`` (for warm starts), and learning ``w'`` on
another scale (see :class:`icnets.ICConv2d`), which is a change of units and not of the function.

Everything here is made of standard torch operators. A layer is torch's own convolution followed by two functions:

* :func:`receptive_field_sum` gives ``s``, once per group of channels, for the price of one read of ``x``;
* :func:`collide` gives ``z`` from ``y`` and ``s``.

Both are leaves for ``torch.fx``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from icnets.unit.kernels import autograd as eager
from icnets.unit.receptive_field import dense, linear_sum, padding_pairs, receptive_field_sum

__all__ = ["collide", "ic_conv1d", "ic_conv2d", "ic_conv3d", "ic_linear", "receptive_field_sum"]


def collide(
    y: Tensor,
    s: Tensor,
    collision: Tensor,
    inner_bias: Tensor | None = None,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    spatial_dims: int = 2,
) -> Tensor:
    """The collision ``z = y + gain * relu((y - bias) - collision * s + inner_bias)``.

    Paper: with ``collision = w'``, ``gain`` absent (1), ``inner_bias = b1`` and ``bias = b2``. ``y`` comes with
    ``bias`` in it, because convolutions add it for nothing; inside the rectifier it is taken out again.

    Args:
        y: the layer's output ``(N, C_out, *L)``, ``bias`` included.
        s: receptive-field sums ``(N, groups, *L)`` from :func:`receptive_field_sum`.
        collision: w', ``(C_out,)``.
        inner_bias: b1, ``(C_out,)``, or absent.
        bias: b2, ``(C_out,)``, or absent.
        gain: on the branch, ``(C_out,)``; absent means 1.
        spatial_dims: length of ``*L``; 0 for a linear layer, whose channels come last.

    Returns:
        ``z`` of ``y``'s shape and dtype. For half-precision ``y`` the collision is computed in float32 and rounded
        once.
    """
    offset = inner_bias
    if bias is not None:
        offset = -bias if inner_bias is None else inner_bias - bias
    ones = [1] * spatial_dims
    channel = -spatial_dims - 1
    if y.size(channel) == 0:  # also what torch's convolution gives for an input without channels
        nothing = collision.sum()  # added, so that every vector gets a gradient of zeros, as a weight does
        nothing = nothing if inner_bias is None else nothing + inner_bias.sum()
        return y + (nothing if gain is None else nothing + gain.sum())
    groups = s.size(channel)
    packed = y.is_mkldnn  # oneDNN's layout, which the operators below don't take
    y = dense(y)
    # addcmul reads y once and keeps its memory format; a product made first would be another full-size tensor.
    if groups == 1:
        u = torch.addcmul(y, collision.view([-1] + ones), s, value=-1)
    else:
        per_group = y.unflatten(channel, [groups, -1])
        u = torch.addcmul(per_group, collision.view([groups, -1] + ones), s.unsqueeze(channel), value=-1)
        u = u.flatten(channel - 1, channel)
    if offset is not None:
        u = u + offset.view([-1] + ones)
    branch = F.relu(u)
    if gain is not None:
        branch = branch * gain.view([-1] + ones)
    z = (y + branch).type_as(y)
    return z.to_mkldnn() if packed else z


# They decide by dtypes and sizes, which torch.fx cannot trace through; as leaves they are recorded whole.
torch.fx.wrap("collide")
torch.fx.wrap("receptive_field_sum")
torch.fx.wrap("linear_sum")


def _ic_conv(
    conv: Callable[..., Tensor],
    nd: int,
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    inner_bias: Tensor | None,
    gain: Tensor | None,
) -> Tensor:
    if weight.dim() == nd + 2 and eager.serves(x, weight, bias, collision_weight, inner_bias, gain):
        unit = (collision_weight, inner_bias, gain)
        return eager.ic_conv(x, weight, bias, stride, padding, dilation, groups, *unit)
    kernel = list(weight.shape[2:])
    pairs = padding_pairs(padding, kernel, dilation)
    y = conv(x, weight, bias, stride, padding, dilation, groups)
    s = receptive_field_sum(x, kernel, stride, pairs, dilation, groups)
    return collide(y, s, collision_weight, inner_bias, bias, gain, nd)


def ic_conv1d(
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    inner_bias: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """IC convolution over ``x`` of shape ``(N, C_in, L)`` (paper: arXiv 2102.03495).

    Takes the arguments of :func:`torch.nn.functional.conv1d` and the unit's own, each of shape ``(C_out,)``:
    ``collision_weight`` (the paper's w'), ``inner_bias`` (b1) and ``gain`` (ours; absent means 1).
    Returns ``(N, C_out, L_out)``. Raises ValueError for an unknown padding string.
    """
    return _ic_conv(F.conv1d, 1, x, weight, collision_weight, bias, stride, padding, dilation, groups, inner_bias, gain)


def ic_conv2d(
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    inner_bias: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """IC convolution over ``x`` of shape ``(N, C_in, H, W)``; see :func:`ic_conv1d`."""
    return _ic_conv(F.conv2d, 2, x, weight, collision_weight, bias, stride, padding, dilation, groups, inner_bias, gain)


def ic_conv3d(
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    inner_bias: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """IC convolution over ``x`` of shape ``(N, C_in, D, H, W)``; see :func:`ic_conv1d`."""
    return _ic_conv(F.conv3d, 3, x, weight, collision_weight, bias, stride, padding, dilation, groups, inner_bias, gain)


def ic_linear(
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None = None,
    *,
    inner_bias: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """The IC neuron: a linear layer with a collision (paper: arXiv 2011.11271).

    Args:
        x: ``(*, C_in)``.
        weight: ``(C_out, C_in)``.
        collision_weight: w', ``(C_out,)``.
        bias: b2, ``(C_out,)``, or absent.
        inner_bias: b1, ``(C_out,)``, or absent.
        gain: on the branch (ours), ``(C_out,)``; absent means 1.

    Returns:
        ``(*, C_out)``.
    """
    y = F.linear(x, weight, bias)
    return collide(y, linear_sum(x), collision_weight, inner_bias, bias, gain, 0)


def fan_in_scale(scale: str, fan_in: int) -> float:
    """Factor between the plain sum ``s`` and the one a learned collision weight multiplies (ours).

    ``"sum"`` is the paper's 1, ``"sqrt"`` is 1/√n and ``"mean"`` is 1/n, n being the fan-in. Raises ValueError for
    any other word.
    """
    n = max(fan_in, 1)
    if scale == "sum":
        return 1.0
    if scale == "sqrt":
        return 1.0 / math.sqrt(n)
    if scale == "mean":
        return 1.0 / n
    raise ValueError(f"scale is {scale!r}; it must be 'sqrt', 'sum' or 'mean'")
