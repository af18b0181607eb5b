"""torch's layers with a collision in them: subclasses that keep torch's arguments, attributes and state-dict keys."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets.unit import functional, receptive_field
from icnets.unit.collision import Collision
from icnets.unit.kernels import autograd as eager

__all__ = [
    "IC_LAYERS",
    "ICConv1d",
    "ICConv2d",
    "ICConv3d",
    "ICConvTranspose1d",
    "ICConvTranspose2d",
    "ICConvTranspose3d",
    "ICLinear",
    "ic_parameters",
]

_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _ICConv(Collision):
    """The constructor and the forward pass that the three convolutions share."""

    if TYPE_CHECKING:  # torch's own attributes
        kernel_size: Any
        stride: Any
        padding: Any
        dilation: Any
        groups: int
        padding_mode: Any
        bias: Tensor | None
        _reversed_padding_repeated_twice: Any

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> None:
        basic = (
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
        )
        super().__init__(*basic, device=device, dtype=dtype)  # type: ignore[call-arg]
        self._add_collision(inner_bias, gain, collision_weight, scale)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> Self:
        """A new IC layer that takes over the very Parameter objects, hooks and mode of ``conv``.

        Args:
            conv: torch's own layer of the same dimension; a subclass raises TypeError.
            inner_bias, gain, collision_weight, scale: as in the constructor.
        """
        options = {
            "inner_bias": inner_bias,
            "gain": gain,
            "collision_weight": collision_weight,
            "scale": scale,
        }
        return cls._from_basic(conv, **options)

    def forward(self, input: Tensor) -> Tensor:
        # Module attribute access is slow; read each one once.
        weight, bias, padding = self.weight, self.bias, self.padding
        collision, inner_bias, gain = self.collision, self.inner_bias, self.gain
        if eager.serves(input, weight, bias, collision, inner_bias, gain):
            if self.padding_mode != "zeros":
                input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
            conv = (self.stride, padding, self.dilation, self.groups)
            return eager.ic_conv(input, weight, bias, *conv, collision, inner_bias, gain, self.sum_scale)
        y = self._conv_forward(input, weight, bias)
        window = (list(self.kernel_size), list(self.stride), receptive_field.sum_padding(self), list(self.dilation))
        s = receptive_field.receptive_field_sum(input, *window, self.groups, self.padding_mode, self.sum_scale)
        return functional.collide(y, s, collision, inner_bias, bias, gain, len(self.kernel_size))


class _ICConvTranspose(Collision):
    """The constructor, the receptive field and the collision that the three transposed convolutions share."""

    if TYPE_CHECKING:
        in_channels: int
        kernel_size: Any
        stride: Any
        padding: Any
        dilation: Any
        output_padding: Any
        groups: int
        bias: Tensor | None

        def _output_padding(self, *args: Any) -> list[int]: ...

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> None:
        basic = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias)
        super().__init__(*basic, dilation, padding_mode, device=device, dtype=dtype)  # type: ignore[call-arg]
        self._add_collision(inner_bias, gain, collision_weight, scale)

    from_conv = _ICConv.__dict__["from_conv"]

    @property
    def fan_in(self) -> int:
        """n, the most inputs that meet in one output: C_in / groups x ceil(kernel size / stride)."""
        stride = receptive_field.per_dimension(self.stride, len(self.kernel_size))
        taps = [math.ceil(k / step) for k, step in zip(self.kernel_size, stride, strict=True)]
        return self.in_channels // self.groups * math.prod(taps)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        nd, bias = len(self.kernel_size), self.bias
        window = (self.stride, self.padding, self.kernel_size, nd, self.dilation)
        extra = self._output_padding(input, output_size, *window)
        y = _TRANSPOSED[nd](input, self.weight, bias, self.stride, self.padding, extra, self.groups, self.dilation)
        field = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, list(y.shape[-nd:]))
        s = receptive_field.transposed_sum(input, *field, self.sum_scale)
        return functional.collide(y, s, self.collision, self.inner_bias, bias, self.gain, nd)


_DOC = """{summary}

    Takes exactly the arguments of :class:`torch.nn.{basic}`, in its order, and by keyword what IC adds:

    Args:
        inner_bias: learn b1, the bias inside the rectifier, from 0 (paper: arXiv 2011.11271). A layer's own
            ``bias`` is b2 and stays outside.
        gain: initial value of a learned gain on the branch, per output channel; None, as in the paper: 1. Ours.
        collision_weight: initial w' in the paper's units; 0 is ours.
        scale: units in which w' is learned: "sqrt" (ours) learns w' x sqrt(n), n being the fan-in, "sum" w' itself
            as in the paper, "mean" w' x n. The function is the same; the conditioning isn't.

    Shapes: as torch's layer, batched or not. New parameters: ``collision``, ``inner_bias`` and ``gain``, ``(C_out,)``
    each. Under autocast to a half-precision type the sum and the collision are computed in float32.

    Raises:
        ValueError: for an unknown ``scale``, or an initial value that isn't finite.
        TypeError: for a complex dtype.
    """


class ICConv1d(_ICConv, nn.Conv1d):
    basic_type = nn.Conv1d
    __doc__ = _DOC.format(summary="1-D convolution with inter-layer collision (arXiv 2102.03495).", basic="Conv1d")


class ICConv2d(_ICConv, nn.Conv2d):
    basic_type = nn.Conv2d
    __doc__ = _DOC.format(summary="2-D convolution with inter-layer collision (arXiv 2102.03495).", basic="Conv2d")


class ICConv3d(_ICConv, nn.Conv3d):
    basic_type = nn.Conv3d
    __doc__ = _DOC.format(summary="3-D convolution with inter-layer collision (arXiv 2102.03495).", basic="Conv3d")


class ICConvTranspose1d(_ICConvTranspose, nn.ConvTranspose1d):
    basic_type = nn.ConvTranspose1d
    __doc__ = _DOC.format(
        summary="1-D transposed convolution with inter-layer collision (ours).", basic=basic_type.__name__
    )


class ICConvTranspose2d(_ICConvTranspose, nn.ConvTranspose2d):
    basic_type = nn.ConvTranspose2d
    __doc__ = _DOC.format(
        summary="2-D transposed convolution with inter-layer collision (ours).", basic=basic_type.__name__
    )


class ICConvTranspose3d(_ICConvTranspose, nn.ConvTranspose3d):
    basic_type = nn.ConvTranspose3d
    __doc__ = _DOC.format(
        summary="3-D transposed convolution with inter-layer collision (ours).", basic=basic_type.__name__
    )


class ICLinear(Collision, nn.Linear):
    basic_type = nn.Linear
    __doc__ = _DOC.format(summary="The IC neuron: a linear layer with collision (arXiv 2011.11271).", basic="Linear")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._add_collision(inner_bias, gain, collision_weight, scale)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> Self:
        """A new IC layer that takes over the very Parameter objects of ``linear``; see :meth:`ICConv2d.from_conv`."""
        options = {
            "inner_bias": inner_bias,
            "gain": gain,
            "collision_weight": collision_weight,
            "scale": scale,
        }
        return cls._from_basic(linear, **options)

    def forward(self, input: Tensor) -> Tensor:
        y = F.linear(input, self.weight, self.bias)
        s = receptive_field.linear_sum(input, self.sum_scale)
        return functional.collide(y, s, self.collision, self.inner_bias, self.bias, self.gain, 0)


ICLayer = ICConv1d | ICConv2d | ICConv3d | ICConvTranspose1d | ICConvTranspose2d | ICConvTranspose3d | ICLinear
IC_LAYERS: tuple[type[ICLayer], ...] = (
    ICConv1d,
    ICConv2d,
    ICConv3d,
    ICConvTranspose1d,
    ICConvTranspose2d,
    ICConvTranspose3d,
    ICLinear,
)


def unit_of(module: nn.Module) -> type[ICLayer] | None:
    """The IC layer that can take the place of ``module``, by its type; None if there is none."""
    return next((t for t in IC_LAYERS if isinstance(module, t.basic_type)), None)


def ic_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and Parameter of everything IC added to ``model``: ``*.collision``, ``*.inner_bias``, ``*.gain``.

    They are called ``*.ic_collision``, ``*.ic_inner_bias`` and ``*.ic_gain`` where a layer has one of these names for
    something of its own. Of one that is pruned or parametrised, what is trained in its place comes:
    ``*.collision_orig``, ``*.parametrizations.collision.original``. A shared unit comes once, under its first name,
    unless ``remove_duplicate`` is False, as in a state dict.
    """
    for prefix, module in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, IC_LAYERS):
            own = dict(module.named_parameters(remove_duplicate=False))
            for key in module.vector_keys():
                if key in own:
                    yield f"{prefix}.{key}" if prefix else key, own[key]
