"""torch's layers with a collision in them: subclasses that keep torch's arguments, attributes and state-dict keys."""

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets import functional, receptive_field
from icnets.kernels import eager

__all__ = ["IC_LAYERS", "ICConv1d", "ICConv2d", "ICConv3d", "ICLinear", "ic_parameters"]


class _Collision(nn.Module):
    """What the IC layers add to torch's: three vectors, their units, and the way from and to the basic layer."""

    __jit_unused_properties__ = ["collision_weight", "fan_in"]

    basic_type: ClassVar[type[nn.Module]]
    weight: Tensor
    collision: Tensor
    inner_bias: Tensor | None
    gain: Tensor | None
    sum_scale: float

    def _add_collision(
        self,
        inner_bias: bool,
        gain: float | None,
        collision_weight: float,
        scale: str,
        requires_grad: bool = True,
    ) -> None:
        """Registers the new parameters beside ``weight``, of its dtype and on its device."""
        if self.weight.is_complex():
            raise TypeError(f"weight is {self.weight.dtype}; a collision needs an order, so use a real dtype")
        for name, value in (("collision_weight", collision_weight), ("gain", gain)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; it must be a finite number")
        self.collision_scale = scale
        self.sum_scale = functional.fan_in_scale(scale, self.fan_in)
        self.initial_collision_weight = collision_weight
        self.initial_gain = gain
        present = {"collision": True, "inner_bias": inner_bias, "gain": gain is not None}
        for name, wanted in present.items():
            vector = self.weight.new_empty(self.weight.shape[0]) if wanted else None
            self.register_parameter(name, None if vector is None else nn.Parameter(vector, requires_grad))
        self.reset_collision()

    def reset_collision(self) -> None:
        """Puts w', b1 and the gain back to the values they were made with (ours: w' = 0, b1 = 0)."""
        with torch.no_grad():
            self.collision.fill_(self.initial_collision_weight / self.sum_scale)
            if self.inner_bias is not None:
                self.inner_bias.zero_()
            if self.gain is not None and self.initial_gain is not None:
                self.gain.fill_(self.initial_gain)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if "collision" in self._parameters:  # torch's constructor calls this before they are there
            self.reset_collision()

    @property
    def fan_in(self) -> int:
        """n, the number of inputs in the receptive field of one output: C_in / groups x kernel size."""
        return self.weight[0].numel()

    @property
    def collision_weight(self) -> Tensor:
        """w' in the paper's units, ``(C_out,)``, detached. Assign a number or a tensor to set it.

        The learned parameter ``collision`` is w' divided by ``sum_scale``: a change of units, computed in float64
        so that reading and writing each round once.
        """
        return (self.collision.detach().double() * self.sum_scale).to(self.collision.dtype)

    @collision_weight.setter
    def collision_weight(self, value: float | Tensor) -> None:
        w = torch.as_tensor(value, dtype=torch.float64, device=self.collision.device)
        if w.dim() > 0 and w.shape != self.collision.shape:
            raise ValueError(
                f"collision_weight has shape {tuple(w.shape)}; it must be a number or {tuple(self.collision.shape)}"
            )
        with torch.no_grad():
            self.collision.copy_((w / self.sum_scale).expand_as(self.collision))

    @classmethod
    def take_over_(
        cls,
        basic: nn.Module,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> Self:
        """Turns ``basic`` itself into this class, in place, and returns it.

        The object stays the same one, so every reference to it, its Parameters, hooks and attributes remain valid.
        The new parameters are trained if and only if its weight is.
        """
        if not isinstance(basic, cls.basic_type):
            raise TypeError(f"{cls.__name__} takes over a {cls.basic_type.__name__}, not a {type(basic).__name__}")
        former = basic.__class__
        basic.__class__ = cls
        assert isinstance(basic, cls)
        if former is not cls.basic_type:
            basic.__dict__["basic_type"] = former
        basic._add_collision(inner_bias, gain, collision_weight, scale, basic.weight.requires_grad)
        return basic

    def give_back_(self) -> nn.Module:
        """Turns the layer back into the basic one, in place, and returns it; what the collision learned is lost."""
        former = self.__dict__.pop("basic_type", self.basic_type)
        for name in ("collision", "inner_bias", "gain"):
            del self._parameters[name]
        for name in ("collision_scale", "sum_scale", "initial_collision_weight", "initial_gain"):
            del self.__dict__[name]
        self.__class__ = former
        return self

    def fuse(self) -> nn.Module:
        """This unit's deployed form, in place, as timm's ``reparameterize_model`` asks for it; eval mode only.

        :func:`icnets.fuse_` does a whole network and folds its batch norms too.
        """
        from icnets.deploy import deploy_

        return deploy_(self)  # type: ignore[arg-type]

    @classmethod
    def _from_basic(cls, basic: nn.Module, **options: Any) -> Self:
        if type(basic) is not cls.basic_type:
            raise TypeError(f"{cls.__name__} takes over a {cls.basic_type.__name__}, not a {type(basic).__name__}")
        twin = basic.__class__.__new__(basic.__class__)
        # Registries are copied one level deep: the same Parameters and hooks, in dictionaries of its own.
        state = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in basic.__dict__.items()}
        object.__setattr__(twin, "__dict__", state)
        return cls.take_over_(twin, **options)

    def extra_repr(self) -> str:
        extra = [super().extra_repr(), f"scale={self.collision_scale}"]
        extra += ["inner_bias=False"] if self.inner_bias is None else []
        extra += ["gain=True"] if self.gain is not None else []
        return ", ".join(extra)


class _ICConv(_Collision):
    """The constructor and the forward pass that the three convolutions share."""

    if TYPE_CHECKING:  # torch's own attributes; TorchScript would take a runtime annotation at its word
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
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            z = self._eager_forward(input)
            if z is not None:
                return z
        y = self._conv_forward(input, self.weight, self.bias)
        if isinstance(self.padding, str):
            padding = receptive_field.as_list(self._reversed_padding_repeated_twice)
        elif self.padding_mode != "zeros":  # apart, so that TorchScript prunes the branch above
            padding = receptive_field.as_list(self._reversed_padding_repeated_twice)
        else:
            padding = receptive_field.pad_pairs(self.padding)
        s = receptive_field.receptive_field_sum(
            input,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.sum_scale,
        )
        return functional.collide(y, s, self.collision, self.inner_bias, self.bias, self.gain, len(self.kernel_size))

    @torch.jit.unused
    def _eager_forward(self, input: Tensor) -> Tensor | None:
        # Attributes of modules are slow to get, so each once.
        weight, bias, collision, inner_bias = self.weight, self.bias, self.collision, self.inner_bias
        gain, padding = self.gain, self.padding
        if not eager.serves(input, weight, bias, collision, inner_bias, gain):
            return None
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(self.kernel_size)
        conv = (self.stride, padding, self.dilation, self.groups)
        return eager.ic_conv(input, weight, bias, *conv, collision, inner_bias, gain, self.sum_scale)


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


class ICLinear(_Collision, nn.Linear):
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


ICLayer = ICConv1d | ICConv2d | ICConv3d | ICLinear
IC_LAYERS: tuple[type[ICLayer], ...] = (ICConv1d, ICConv2d, ICConv3d, ICLinear)


def ic_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and Parameter of everything IC added to ``model``: ``*.collision``, ``*.inner_bias``, ``*.gain``.

    A shared unit comes once, under its first name, unless ``remove_duplicate`` is False, as in a state dict.
    """
    for prefix, module in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, IC_LAYERS):
            for name in ("collision", "inner_bias", "gain"):
                parameter = module._parameters[name]
                if parameter is not None:
                    yield f"{prefix}.{name}" if prefix else name, parameter
