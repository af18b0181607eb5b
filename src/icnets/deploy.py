"""The deployed form of an IC unit: a convolution with a plain post-op, plus a rank-one term (ours).

With ``u = conv(x, W - w' * 1) + b1``, the unit is ``z = u + gain * relu(u) + w' * s - b1 + b2``: two slopes
in ``u``, so a scaled convolution followed by PReLU. A batch norm behind it, ``scale * z + shift`` per
channel, folds in exactly, whatever the sign of ``scale``. For inference only; computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from icnets.kernels import eager, gpu, native, passes
from icnets.layers import IC_LAYERS, ICConv1d, ICConv2d, ICConv3d, ICLayer, ICLinear
from icnets.receptive_field import dense, linear_sum, receptive_field_mean, sum_padding, write_out_
from icnets.subclasses import own_behaviour

__all__ = [
    "FUSED_LAYERS",
    "FusedICConv1d",
    "FusedICConv2d",
    "FusedICConv3d",
    "FusedICLinear",
    "deploy_",
    "obstacle_to_deploying",
]


@dataclass(frozen=True)
class Affine:
    """What follows a unit, per output channel: ``scale * z + shift``, both ``(C_out,)`` float64 on the CPU."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class _Deployed:
    """``out = sign * prelu(conv(x, weight) + bias, slope) + collision * s + offset``, in float64 on the CPU.

    ``s`` is the mean over the window of the sum over the channels: ``collision`` has the window's size in it.
    """

    weight: Tensor
    bias: Tensor
    linear: bool = False  # the branch is silent everywhere: nothing but weight and bias
    slope: Tensor = field(default_factory=lambda: torch.ones(1))
    collision: Tensor = field(default_factory=lambda: torch.zeros(1))
    offset: Tensor = field(default_factory=lambda: torch.zeros(1))
    sign: Tensor = field(default_factory=lambda: torch.ones(1))


def _exact(vector: Tensor | None, like: Tensor) -> Tensor:
    """Any device's parameter in float64 on the CPU (some devices have no float64); zeros for an absent one."""
    if vector is None:
        return torch.zeros(like.shape[0], dtype=torch.float64)
    return vector.detach().to("cpu", torch.float64)


def _solve(layer: ICLayer, after: Affine | None) -> _Deployed:
    weight = _exact(layer.weight, layer.weight)
    ones = torch.ones(weight.shape[0], dtype=torch.float64)
    gain = ones if layer.gain is None else _exact(layer.gain, weight)
    a, shift = (ones, 0 * ones) if after is None else (after.scale, after.shift)
    outer = _exact(layer.bias, weight)
    rows = (-1,) + (1,) * (weight.dim() - 1)
    if bool(((gain == 0) | (a == 0)).all()):
        return _Deployed(weight * a.view(rows), a * outer + shift, linear=True)
    # A silent branch needs neither w' nor b1: they cancel, exactly so when left out.
    w_prime = torch.where(gain == 0, 0.0, _exact(layer.collision, weight) * layer.sum_scale)
    inner = torch.where(gain == 0, 0.0, _exact(layer.inner_bias, weight))
    sign, factor, slope = _sides(a, gain)
    return _Deployed(
        weight=(weight - w_prime.view(rows)) * factor.view(rows),
        bias=inner * factor,
        slope=slope,
        collision=a * w_prime * (1 if weight.dim() == 2 else weight[0, 0].numel()),
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


def _post(
    v: Tensor,
    s: Tensor | None,
    slope: Tensor | None,
    uniform_slope: float,
    sign: Tensor | None,
    collision: Tensor | None,
    offset: Tensor | None,
    spatial_dims: int,
) -> Tensor:
    """``sign * prelu(v) + collision * s + offset`` for ``v`` ``(N, C, *L)`` and ``s`` ``(N, groups, *L)``.

    ``v`` is the convolution's own output, which nobody else has seen: it may be overwritten.
    """
    if eager.serves_post(v, spatial_dims):
        return passes.post_(v, s, slope, uniform_slope, sign, collision, offset)
    packed, v = v.is_mkldnn, dense(v)  # oneDNN's layout, which the operators below don't take
    ones = [1] * spatial_dims
    if slope is None:
        r = F.leaky_relu(v, uniform_slope)
    elif v.dim() == spatial_dims + 2 and spatial_dims > 0:
        r = F.prelu(v, slope.to(v.dtype))
    elif spatial_dims > 0:
        r = F.prelu(v.unsqueeze(0), slope.to(v.dtype)).squeeze(0)
    else:  # F.prelu's channels are dimension 1
        r = F.prelu(v.reshape(-1, v.size(-1)), slope.to(v.dtype)).view(v.shape)
    if v.dtype == torch.float16 or v.dtype == torch.bfloat16:
        r = r.float()  # rounded once, at the end
    if sign is not None:
        r = r * sign.view([-1] + ones)
    if offset is not None:
        r = r + offset.view([-1] + ones)
    if collision is not None and s is not None:
        channel = -spatial_dims - 1
        groups = s.size(channel)
        if groups == 1 or groups == r.size(channel):
            r = torch.addcmul(r, collision.view([-1] + ones), s)
        else:
            per_group = r.unflatten(channel, [groups, -1])
            per_group = torch.addcmul(per_group, collision.view([groups, -1] + ones), s.unsqueeze(channel))
            r = per_group.flatten(channel - 1, channel)
    r = r.to(v.dtype)
    return r.to_mkldnn() if packed else r


torch.fx.wrap("_post")
torch.fx.wrap("receptive_field_mean")
torch.fx.wrap("linear_sum")


class _Fused(nn.Module):
    """What the deployed layers share. Made by :func:`deploy_` from an IC unit, never by a constructor.

    State-dict keys: ``weight``, ``bias`` and, where the layer needs them, ``slope``, ``collision``, ``offset`` and
    ``sign``, ``(C_out,)`` each. Nothing in it trains.
    """

    weight: Any
    bias: Any
    slope: Tensor | None
    collision: Tensor | None
    offset: Tensor | None
    sign: Tensor | None
    uniform_slope: float

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} has no constructor; icnets.fuse_(model) makes it from an IC unit")

    def extra_repr(self) -> str:
        present = [n for n in ("slope", "collision", "offset", "sign") if getattr(self, n) is not None]
        return ", ".join([super().extra_repr(), f"deployed=({', '.join(present)})"])


class _FusedConv(_Fused):
    if TYPE_CHECKING:
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        padding: str | tuple[int, ...]
        dilation: tuple[int, ...]
        groups: int
        padding_mode: Any
        sum_padding: list[int]

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C_in, *L)`` or ``(C_in, *L)`` to ``([N,] C_out, *L_out)``, as the unit it was."""
        zeros = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if zeros and eager.serves_deployed(input, self.weight):
            return self._native_forward(input)
        if zeros and self.groups == 1 and eager.serves_pointwise(input, self.weight, self.padding):
            post = (self.slope, self.uniform_slope, self.sign, self.collision, self.offset)
            z = gpu.deployed_pointwise(input, self.weight, self.bias, self.stride, post, lambda: self._plain(input))
            if z is not None:
                return z
        return self._plain(input)

    def _plain(self, input: Tensor) -> Tensor:
        zeros = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        s = None
        if self.collision is not None:  # before the convolution: it leaves the input in the cache
            window = (list(self.kernel_size), list(self.stride), self.sum_padding, list(self.dilation))
            try:
                s = receptive_field_mean(input, *window, self.groups, self.padding_mode)
            except Exception:
                self._conv_forward(input, self.weight, self.bias)  # torch's own message
                raise
        slope, uniform_slope = self.slope, self.uniform_slope
        v = None
        if slope is None and zeros:
            conv = (self.stride, cast("tuple[int, ...]", self.padding), self.dilation, self.groups)
            v = eager.conv_leaky_relu(input, self.weight, self.bias, *conv, uniform_slope)
        if v is None:
            v = self._conv_forward(input, self.weight, self.bias)
        else:
            uniform_slope = 1.0
        return _post(v, s, slope, uniform_slope, self.sign, self.collision, self.offset, len(self.kernel_size))

    def _native_forward(self, input: Tensor) -> Tensor:
        conv = (self.stride, self.padding, self.dilation, self.groups)
        post = (self.slope, self.uniform_slope, self.sign, self.collision, self.offset)
        return cast(Tensor, native.operator("deployed_conv")(input, self.weight, self.bias, *conv, *post))


class FusedICConv1d(_FusedConv, nn.Conv1d):
    """ICConv1d, deployed; see :func:`deploy_`."""


class FusedICConv2d(_FusedConv, nn.Conv2d):
    """ICConv2d, deployed; see :func:`deploy_`."""


class FusedICConv3d(_FusedConv, nn.Conv3d):
    """ICConv3d, deployed; see :func:`deploy_`."""


class FusedICLinear(_Fused, nn.Linear):
    """The IC neuron, deployed; see :func:`deploy_`."""

    def forward(self, input: Tensor) -> Tensor:
        """``(*, C_in)`` to ``(*, C_out)``."""
        v = F.linear(input, self.weight, self.bias)
        s = None if self.collision is None else linear_sum(input)
        return _post(v, s, self.slope, self.uniform_slope, self.sign, self.collision, self.offset, 0)


FUSED_LAYERS: tuple[type[nn.Module], ...] = (FusedICConv1d, FusedICConv2d, FusedICConv3d, FusedICLinear)
_FUSED = dict(zip((ICConv1d, ICConv2d, ICConv3d, ICLinear), FUSED_LAYERS, strict=True))


def _frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    # A copy into the like of the weight keeps its memory format.
    value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.to(like.device, like.dtype)
    return nn.Parameter(value, requires_grad=False)


def fold_(layer: nn.Module, after: Affine) -> None:
    """Folds what follows a plain convolution or linear layer into its weight and bias, which become new Parameters."""
    with torch.no_grad():
        old = cast(Tensor, layer.weight)
        weight = _exact(old, old)
        bias = _exact(cast("Tensor | None", layer.bias), weight)
        scale = after.scale.view((-1,) + (1,) * (weight.dim() - 1))
        layer.weight = _frozen(weight * scale, old)
        layer.bias = _frozen(bias * after.scale + after.shift, old)


def obstacle_to_deploying(unit: ICLayer) -> str | None:
    """Why an IC unit has no deployed form, or None."""
    kind = next(t for t in IC_LAYERS if isinstance(unit, t))
    if kind not in _FUSED:
        return "a transposed unit has no deployed form"
    if type(unit._parameters.get("weight")) is not nn.Parameter:
        return "its weight is parametrised"
    if "forward" in unit.__dict__ or own_behaviour(unit, kind):
        return f"{type(unit).__name__} has behaviour of its own"
    return None


def weight_growth(layer: ICLayer) -> float:
    """How much wider the deployed weights' range is than the learned ones', at worst over the output channels.

    max|W - w'| / max|W| per channel; factors per channel don't count, as quantisers scale each channel. A large value
    (more than 4: two bits) means that int8 weights lose precision to the collision.
    """
    weight = _exact(layer.weight, layer.weight).flatten(1)
    w_prime = (_exact(layer.collision, weight) * layer.sum_scale)[:, None]
    if layer.gain is not None:
        w_prime = torch.where(_exact(layer.gain, weight)[:, None] == 0, 0.0, w_prime)
    before = weight.abs().amax(1)
    before = torch.where(before > 0, before, before.max())
    growth = ((weight - w_prime).abs().amax(1) / before).max().item()
    return growth if before.max() > 0 else 1.0


def deploy_(layer: ICLayer, after: Affine | None = None) -> nn.Module:
    """Turns one IC unit into its deployed form, in place, and returns it; exact up to one rounding.

    Args:
        layer: an IC unit in eval mode. The object stays the same one; its class and its parameters don't.
        after: what follows it and is to be folded in, e.g. a batch norm; by default nothing.

    Returns:
        ``layer``: now a FusedICConv or FusedICLinear; torch's own layer where the branch is silent in every channel.

    Raises:
        ValueError: the unit is in training mode.
        TypeError: ``layer`` is no IC unit, or one without a deployed form.
    """
    if not isinstance(layer, IC_LAYERS):
        raise TypeError(f"layer is a {type(layer).__name__}; only IC units have a deployed form")
    if (reason := obstacle_to_deploying(layer)) is not None:
        raise TypeError(f"layer is a {type(layer).__name__}, which can't be deployed: {reason}")
    kind = next(k for k in _FUSED if isinstance(layer, k))
    if layer.training:
        raise ValueError("the IC unit is in training mode; call .eval() before fusing")
    solved, padding = _solve(layer, after), [] if isinstance(layer, ICLinear) else sum_padding(layer)
    like = layer.weight
    module: Any = layer.give_back_()
    module.weight, module.bias = _frozen(solved.weight, like), _frozen(solved.bias, like)
    if solved.linear:
        return cast(nn.Module, module)
    module.__class__ = _FUSED[kind]
    module.sum_padding = padding
    write_out_(module)
    slope = solved.slope.to(like.dtype)
    uniform = bool((slope == slope[0]).all())
    module.uniform_slope = slope[0].item() if uniform else 1.0
    absent = {"slope": uniform, "sign": bool((solved.sign == 1).all())}
    for name in ("slope", "collision", "offset", "sign"):
        vector = getattr(solved, name)
        needless = absent.get(name, bool((vector == 0).all()))
        module.register_buffer(name, None if needless else vector.to(like.device, like.dtype))
    return cast(nn.Module, module)
