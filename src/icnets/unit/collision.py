"""What every IC layer adds to torch's: three vectors, their units, and the way from and to the basic layer."""

import inspect
import math
from contextlib import suppress
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from icnets.support.hooks import is_own_forward
from icnets.unit.guards import Colliding
from icnets.unit.subclasses import STATE, basic_of, unit_class

_HOOKED = ("orig", "mask", "g", "v")  # what pruning and weight normalisation by hooks put in a tensor's place


def output_channels(layer: nn.Module) -> int:
    """Output channels of a convolution, transposed or not, or outputs of a linear layer."""
    return cast(int, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _make_plain_(layer: nn.Module, name: str) -> None:
    """Takes pruning, parametrisations and weight normalisation off the vector ``name``."""
    if parametrize.is_parametrized(layer, name):
        parametrize.remove_parametrizations(layer, name)
    for remove in (prune.remove, nn.utils.remove_weight_norm):
        with suppress(ValueError):  # which says that there is nothing to remove
            remove(layer, name)
    if name not in layer._parameters:
        raise TypeError(f"{name} isn't a Parameter any more; put back what took its place before revert_")


class Collision(Colliding):
    """The part that the IC layers share, in front of torch's layer among the bases of each.

    Takes exactly the arguments of torch's layer, in its order, and by keyword what IC adds:

    Args:
        inner_bias: learn b1, the bias inside the rectifier, from 0 (paper: arXiv 2011.11271). A layer's own
            ``bias`` is b2 and stays outside.
        gain: initial value of a learned gain on the branch, per output channel; None, as in the paper: 1.
        collision_weight: initial w' in the paper's units.
        scale: units in which w' is learned: "sqrt" learns w' x sqrt(n), n being the fan-in, "sum" w' itself
            as in the paper, "mean" w' x n. The function is the same; the conditioning isn't.

    Shapes: as torch's layer, batched or not. New parameters: ``collision``, ``inner_bias`` and ``gain``, ``(C_out,)``
    each. Under autocast to a half-precision type the sum and the collision are computed in float32.

    Raises:
        ValueError: for an unknown ``scale``.

    Example:
        >>> from icnets import ICConv2d
        >>> [name for name, _ in ICConv2d(3, 8, 3).named_parameters()]
        ['weight', 'bias', 'collision', 'inner_bias']
    """

    basic_type: ClassVar[type[nn.Module]]
    # Of w', b1 and the gain; others where the layer has attributes of these names already.
    vector_names: ClassVar[tuple[str, str, str]] = ("collision", "inner_bias", "gain")
    collision: Tensor
    inner_bias: Tensor | None
    gain: Tensor | None
    sum_scale: float

    def __init_subclass__(cls, basic: Any = None) -> None:
        """Gives the unit of a ``basic`` layer its constructor, torch's with our options, and their documentation."""
        super().__init_subclass__()
        if basic is None:
            return
        own = [p for p in inspect.signature(cls._add_collision).parameters.values() if p.kind is p.KEYWORD_ONLY]

        def __init__(self: Self, *args: Any, **kwargs: Any) -> None:
            options = {p.name: kwargs.pop(p.name) for p in own if p.name in kwargs}
            super().__init__(*args, **kwargs)
            self._add_collision(True, **options)

        signature: Any = inspect.signature(basic.__init__)
        init: Any = __init__
        init.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])
        init.__qualname__ = f"{cls.__name__}.__init__"
        cls.basic_type, cls.__init__ = basic, init  # type: ignore[method-assign]
        cls.__doc__ = f"{cls.__doc__}\n\n    {str(Collision.__doc__).partition('of each.')[2].lstrip()}"

    def _add_collision(
        self,
        requires_grad: bool,
        *,
        inner_bias: bool = True,
        gain: float | None = None,
        collision_weight: float = 0.0,
        scale: str = "sqrt",
    ) -> None:
        """Registers the new parameters beside ``weight``, of its dtype and on its device."""
        weight = self.weight
        n = max(self.fan_in, 1)
        scales = {"sum": 1.0, "sqrt": 1.0 / math.sqrt(n), "mean": 1.0 / n}
        if scale not in scales:
            raise ValueError(f"scale is {scale!r}; it must be 'sqrt', 'sum' or 'mean'")
        self.collision_scale, self.sum_scale = scale, scales[scale]
        self.initial_collision_weight = collision_weight
        self.initial_gain = gain
        with torch.inference_mode(weight.is_inference()):  # what is made in inference mode can't be trained
            for name, wanted in zip(self.vector_names, (True, inner_bias, gain is not None), strict=True):
                vector = weight.new_empty(output_channels(self)) if wanted else None
                self.register_parameter(name, None if vector is None else nn.Parameter(vector, requires_grad))
            self.reset_collision()

    def vectors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """w' on the learned scale, b1 and the gain, ``(C_out,)`` each; the last two may be absent."""
        collision, inner_bias, gain = (getattr(self, name) for name in self.vector_names)
        return collision, inner_bias, gain

    def collides(self) -> bool:
        """Whether the branch changes anything: not where a gain is 0 in every channel."""
        gain = self.vectors()[2]
        return gain is None or gain.is_meta or bool((gain != 0).any())

    def reset_collision(self) -> None:
        """Puts w', b1 and the gain back to the values they were made with (w' = 0, b1 = 0)."""
        starts = (self.initial_collision_weight / self.sum_scale, 0.0, self.initial_gain or 0.0)
        own = zip(self.vector_names, self.vectors(), starts, strict=True)
        settable = [(self._settable(name), start) for name, vector, start in own if vector is not None]  # all, or none
        with torch.no_grad():
            for vector, start in settable:
                vector.fill_(start)

    def _settable(self, name: str) -> nn.Parameter:
        if (parameter := self._parameters.get(name)) is None:
            raise RuntimeError(f"{name} is computed, by pruning or a parametrisation; remove that to set it")
        return parameter

    def vector_keys(self) -> list[str]:
        """State-dict keys of w', b1 and the gain, or of what a pruned or parametrised one is computed from."""
        own = [k for k, _ in [*self.named_parameters(remove_duplicate=False), *self.named_buffers()]]
        keys = []
        for name in self.vector_names:
            parts = (name,) if name in self._parameters else tuple(f"{name}_{part}" for part in _HOOKED)
            keys += [k for k in own if k in parts or k.startswith(f"parametrizations.{name}.")]
        return keys

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if self.vector_names[0] in self._parameters:  # torch's constructor calls this before they are there
            self.reset_collision()

    @property
    def fan_in(self) -> int:
        """n, the number of inputs in the receptive field of one output: C_in / groups x kernel size."""
        return math.prod(self.weight.shape[1:])

    @property
    def collision_weight(self) -> Tensor:
        """w' in the paper's units, ``(C_out,)``, detached. Assign a number or a tensor to set it.

        The learned parameter ``collision`` is w' divided by ``sum_scale``: a change of units, computed in float64
        so that reading and writing each round once.
        """
        collision = self.vectors()[0]
        return (collision.detach().double() * self.sum_scale).to(collision.dtype)

    @collision_weight.setter
    def collision_weight(self, value: float | Tensor) -> None:
        collision = self._settable(self.vector_names[0])
        w = torch.as_tensor(value, dtype=torch.float64, device=collision.device)
        if w.dim() > 0 and w.shape != collision.shape:
            raise ValueError(f"collision_weight has shape {tuple(w.shape)}; it must be a number or {collision.shape}")
        with torch.no_grad():
            collision.copy_((w / self.sum_scale).expand_as(collision))

    @classmethod
    def take_over_(cls, basic: nn.Module, **options: Any) -> Self:
        """Turns ``basic`` itself into this class, in place, and returns it.

        The object stays the same one, so every reference to it, its Parameters, hooks and attributes remain valid.
        The new parameters are trained if and only if its weight is. A subclass with behaviour of its own keeps it; see
        :mod:`icnets.unit.subclasses`.
        """
        trained = any(p.requires_grad for name, p in basic.named_parameters() if "bias" not in name)
        if is_own_forward(basic):
            del basic.__dict__["forward"]
        former = basic.__class__
        basic.__class__ = unit_class(cls, basic)
        assert isinstance(basic, cls)
        if former is not cls.basic_type:
            basic.__dict__["basic_type"] = former
        basic._add_collision(trained, **options)
        return basic

    def give_back_(self) -> nn.Module:
        """Turns the layer back into the basic one, in place, and returns it; what the collision learned is lost."""
        layer: Any = self
        names, former = self.vector_names, basic_of(self)
        if is_own_forward(layer):
            del layer.__dict__["forward"]
        layer.__class__ = former
        layer.__dict__.pop("basic_type", None)
        for name in names:
            _make_plain_(layer, name)
            del layer._parameters[name]
        for name in STATE:
            layer.__dict__.pop(name, None)
        return cast(nn.Module, layer)

    def extra_repr(self) -> str:
        _, inner_bias, gain = self.vectors()
        extra = [super().extra_repr(), f"scale={self.collision_scale}"]
        extra += ["inner_bias=False"] if inner_bias is None else []
        extra += ["gain=True"] if gain is not None else []
        return ", ".join(extra)
