"""The deployed layers, and how a layer becomes one in place; :mod:`icnets.unit.deployed_form` has the numbers."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from icnets.support.plain import without_parametrizations_
from icnets.unit import functional, receptive_field
from icnets.unit.deployed_form import Affine, solve
from icnets.unit.guards import Colliding
from icnets.unit.layers import IC_LAYERS
from icnets.unit.receptive_field import padded, write_out_
from icnets.unit.recording import Convolution, convolution_of, windows
from icnets.unit.subclasses import FORWARD, combined, own_names


class _Fused(Colliding):
    """What the deployed layers share. Made by :func:`deploy_` from an IC unit, never by a constructor.

    State-dict keys: ``weight``, ``bias`` and, where the layer needs them, ``slope``, ``collision``, ``offset`` and
    ``sign``, ``(C_out,)`` each. Nothing in it trains.
    """

    slope: Tensor | None
    collision: Tensor | None
    offset: Tensor | None
    sign: Tensor | None
    uniform_slope: float

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} has no constructor; icnets.fuse_(model) makes it from an IC unit")

    def post(self) -> functional.Post:
        """What follows the convolution, as :func:`icnets.unit.functional.deployed` takes it."""
        return self.slope, self.uniform_slope, self.sign, self.collision, self.offset

    def extra_repr(self) -> str:
        present = [n for n in ("slope", "collision", "offset", "sign") if getattr(self, n) is not None]
        return ", ".join([super().extra_repr(), f"deployed=({', '.join(present)})"])


class _FusedConv(_Fused):
    def forward(self, input: Tensor) -> Tensor:
        """``(N, C_in, *L)`` or ``(C_in, *L)`` to ``([N,] C_out, *L_out)``, the shapes of the original unit."""
        x, padding, unpadded = padded(self, input)
        conv = (x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return functional.deployed_convolution(self.kernel_size, conv, self.post(), unpadded)

    def deployed_convolution(self, call: dict[str, Any]) -> Tensor:
        """Stands in for the convolution that a subclass's own forward pass makes; its weight isn't looked at."""
        stride, pairs, dilation, groups = windows(call, self.kernel_size)
        x = F.pad(call["input"], pairs) if any(pairs) else call["input"]
        conv = (x, self.weight, self.bias, stride, [0] * len(stride), dilation, groups)
        return functional.deployed_convolution(self.kernel_size, conv, self.post())


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
        s = None if self.collision is None else receptive_field.linear_sum(input)
        return functional.deployed(v, s, 0, self.post())


class _FusedConvTranspose(_Fused):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(N, C_in, *L)`` or ``(C_in, *L)`` to ``([N,] C_out, *L_out)``, the shapes of the original unit."""
        nd = len(self.kernel_size)
        v: Tensor = super().forward(input, output_size)
        s = None
        if self.collision is not None:
            window = (self.kernel_size, self.stride, self.padding, self.dilation)
            s = receptive_field.transposed_sum(input, *window, self.groups, [v.size(i - nd) for i in range(nd)])
        return functional.deployed(v, s, nd, self.post())


class FusedICConvTranspose1d(_FusedConvTranspose, nn.ConvTranspose1d):
    """ICConvTranspose1d, deployed; see :func:`deploy_`."""


class FusedICConvTranspose2d(_FusedConvTranspose, nn.ConvTranspose2d):
    """ICConvTranspose2d, deployed; see :func:`deploy_`."""


class FusedICConvTranspose3d(_FusedConvTranspose, nn.ConvTranspose3d):
    """ICConvTranspose3d, deployed; see :func:`deploy_`."""


_TRANSPOSED = (FusedICConvTranspose1d, FusedICConvTranspose2d, FusedICConvTranspose3d)
FUSED_LAYERS: tuple[type[nn.Module], ...] = (FusedICConv1d, FusedICConv2d, FusedICConv3d, *_TRANSPOSED, FusedICLinear)
_FUSED: dict[type[nn.Module], Any] = {u.basic_type: f for u, f in zip(IC_LAYERS, FUSED_LAYERS, strict=True)}
_NAMES = ("slope", "collision", "offset", "sign", "uniform_slope", "deployed_convolution", "post")


def _frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    # A copy into the like of the weight keeps its memory format.
    value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.to(like.device, like.dtype)
    return nn.Parameter(value, requires_grad=False)


def _convolution(layer: Any) -> Convolution | str:
    """Weight and bias that ``layer``, an IC unit or a layer of torch's, computes with; or why that can't be said."""
    if isinstance(layer, FUSED_LAYERS):
        return "it is deployed already"
    # torch's parametrisations put a class in front
    kind: Any = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    unit = next((t for t in IC_LAYERS if isinstance(layer, t)), None)
    basic = next(t for t in _FUSED if isinstance(layer, t))
    if "forward" in layer.__dict__ or (unit not in (None, kind) and "_unit" not in vars(kind)):
        return f"{kind.__name__} has behaviour of its own"
    for name in ("weight", "bias", *getattr(layer, "vector_names", ())):
        value = layer._parameters.get(name)
        if parametrize.is_parametrized(layer, name):
            continue
        if name not in layer._parameters:
            return f"its {name} is computed before each call, as by pruning: make it permanent first"
        if value is not None and (type(value) is not nn.Parameter or type(value.data) is not Tensor):
            return f"its {name} is a {type(value.data).__name__}, not a plain Parameter"
    taken = [n for n in _NAMES if n not in getattr(layer, "vector_names", ()) and hasattr(layer, n)]
    if taken:
        return f"{kind.__name__} has attributes of its own that a deployed unit has too ({', '.join(taken)})"
    former = kind if unit is None else getattr(layer, "basic_type", basic)
    if FORWARD.isdisjoint(own_names(former, basic)):
        return Convolution(layer.weight, layer.bias)
    if not issubclass(basic, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return f"{kind.__name__} has behaviour of its own"
    return convolution_of(layer, former.forward)


def obstacle_to_deploying(layer: nn.Module) -> str | None:
    """Why an IC unit has no deployed form, or a layer of torch's can take nothing; None if nothing is in the way."""
    found = _convolution(layer)
    return found if isinstance(found, str) else None


def deploy_(layer: nn.Module, after: Affine | None = None) -> nn.Module:
    """Turns one IC unit into its deployed form, in place, and returns it; exact up to one rounding.

    Args:
        layer: an IC unit in eval mode. The object stays the same one; its class and its parameters don't. A layer of
            torch's may take what follows it, too: it remains what it is.
        after: what follows it and is to be folded in, e.g. a batch norm; by default nothing.

    Returns:
        ``layer``: now a FusedICConv or FusedICLinear; torch's own layer where the branch is silent in every channel.

    Raises:
        TypeError: ``layer`` has no deployed form.
    """
    conv = _convolution(layer)
    if isinstance(conv, str):
        raise TypeError(f"layer is a {type(layer).__name__}, which can't be deployed: {conv}")
    like = conv.weight
    with torch.device("cpu"):  # whatever the default device is
        solved = solve(layer, conv, after)
    without_parametrizations_(layer)
    module: Any = layer.give_back_() if isinstance(layer, IC_LAYERS) else layer
    module.weight, module.bias = _frozen(solved.weight, like), _frozen(solved.bias, like)
    if solved.linear and conv.own:
        return cast(nn.Module, module)
    former, basic = type(module), next(t for t in _FUSED if isinstance(module, t))
    module.__class__ = _FUSED[basic]
    if former is not basic:
        module.__class__ = combined(_FUSED[basic], cast(Any, former), conv.padded, False)
        module.__dict__["basic_type"] = former
    if not conv.padded:  # its forward pass goes, and this is what it was
        module.__dict__.update(conv.call)
    if basic is not nn.Linear:
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
