"""Subclasses of torch's layers: what they do beside the convolution stays theirs, and the convolution collides.

Some pad in a way of their own or standardise their weight before they convolve; some have their weight computed by
torch's parametrisations. Their class stays among the bases of the unit's class. Where the forward pass is their own, it
runs as it is, but the one call of torch's convolution in it is an IC convolution: :func:`obstacle` makes sure, by a
trial on a copy, that there is exactly one, and that its output is what the layer returns.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from icnets.unit import functional
from icnets.unit.recording import CONVOLUTIONS, Record, arguments, try_forward, windows

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_TORCH = tuple(layer.forward for layer in _LAYERS)
_HARMLESS = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__"}
_HARMLESS |= {"__static_attributes__", "__parameters__", "__orig_bases__", "__annotations_cache__", "__annotate_func__"}
FORWARD = {"forward", "_conv_forward", "__call__"}
# What the unit's own methods extend rather than replace, so that a subclass may define it too.
_SHARED = {"forward", "reset_parameters", "extra_repr", "register_parameter", "_load_from_state_dict"}
STATE = {"collision_scale", "sum_scale", "initial_collision_weight", "initial_gain"}


def own_names(cls: type[nn.Module], basic: type[nn.Module]) -> list[str]:
    """Names that ``cls`` and its bases below ``basic`` define, beyond a constructor."""
    classes = cls.__mro__[: cls.__mro__.index(basic)]
    return sorted({name for c in classes for name in vars(c)} - _HARMLESS)


def has_own_forward(module: nn.Module, basic: type[nn.Module]) -> bool:
    """Whether a class between the module's own and ``basic`` has a forward pass of its own."""
    return not FORWARD.isdisjoint(own_names(type(module), basic))


# -- what such a layer does ------------------------------------------------------------------------------------------


def convolved(module: Any, x: Tensor) -> tuple[Any, ...]:
    """What ``module``, a convolution, convolves when it is given ``x``, as ``receptive_field_sum`` takes it.

    Returns the input, padded where that isn't with zeros, and the kernel size, stride, padding in pairs, dilation and
    groups of the convolution.
    """
    kernel = list(module.kernel_size)
    with Record(x) as record:
        type(module).forward(module, x)
    call, _ = record.calls[0]
    return call["input"], kernel, *windows(call, kernel)


def _clash(kind: str, names: set[str]) -> str:
    return f"{kind} has attributes of its own that an IC unit has too ({', '.join(sorted(names)[:3])})"


def obstacle(module: nn.Module, basic: type[nn.Module], unit: type[nn.Module]) -> str | None:
    """Why a module of a subclass of ``basic`` can't become a ``unit``, or None. Nothing in it is changed."""
    kind, own = type(module).__name__, own_names(type(module), basic)
    classes = unit.__mro__[: unit.__mro__.index(basic)]
    taken = STATE | {n for c in classes for n in vars(c) if not n.startswith("__")}
    clashes = {n for n in taken if n in own or (hasattr(module, n) and not hasattr(basic, n))} - _SHARED
    if clashes:
        return _clash(kind, clashes)
    if not has_own_forward(module, basic):
        renamed = {n for n in unit.vector_names if hasattr(module, n)}  # type: ignore[attr-defined]
        return None if basic in _LAYERS or not renamed else _clash(kind, renamed)
    reason = f"{kind} has behaviour of its own ({', '.join(own[:3])})"
    if not hasattr(module, "in_channels") or getattr(module, "transposed", False):
        return reason
    found = try_forward(module, type(module).forward, random=True)
    if isinstance(found, str):
        return f"{reason}: it {found}"
    # Of random weights some taps are zero in every filter only if something made them so.
    silent = (found.call["weight"] == 0).all(0)
    masks = not silent.is_meta and bool(silent.any()) and not bool(silent.all())
    return f"{reason}: it masks its weight, but a collision sees every input" if masks else None


# -- the class of its unit -------------------------------------------------------------------------------------------


class Replaced(TorchFunctionMode):
    """While it is entered, ``by`` takes the place of torch's convolution: it gets the arguments, by name."""

    def __init__(self, by: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.by = by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.by(arguments(args, kwargs)) if func in CONVOLUTIONS else func(*args, **(kwargs or {}))


def _collided(self: Any, call: dict[str, Any]) -> Tensor:
    collision, inner_bias, gain = self.vectors()
    conv: Any = tuple(call.values())
    return functional.convolution(self.kernel_size, conv, (collision * self.sum_scale, inner_bias, gain))


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    with Replaced(getattr(self, "deployed_convolution", partial(_collided, self))):
        return self.basic_type.forward(self, *args, **kwargs)


def _by_position(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._unit.forward(self, *args, *kwargs.values())  # the former class may call its input otherwise


def _reduce(self: Any, protocol: Any) -> Any:
    # Pickle can't find a class that was made here, but can make it again.
    if parametrize.is_parametrized(self):  # which torch refuses to pickle
        return nn.Module.__reduce_ex__(self, protocol)
    return _restore, (self._unit, self.basic_type, self._options), dict(self.__dict__)


def _restore(unit: Any, former: Any, options: tuple[bool, bool]) -> nn.Module:
    cls: Any = combined(unit, former, *options)
    return cast(nn.Module, cls.__new__(cls))


@cache
def combined(unit: Any, former: Any, own_forward: bool, renamed: bool) -> Any:
    """The class of a layer that is a ``unit`` and a ``former``, perhaps with the latter's forward pass around it."""
    members: dict[str, Any] = {"__module__": __name__, "__reduce_ex__": _reduce}
    members |= {"_unit": unit, "_options": (own_forward, renamed)}
    if own_forward:
        members["forward"] = _forward
    elif former.forward not in _OF_TORCH and hasattr(unit, "deployed_convolution"):
        members["forward"] = _by_position
    if renamed:
        members["vector_names"] = tuple(f"ic_{name}" for name in unit.vector_names)
    return type(f"{unit.__name__}Of{former.__name__}", (unit, former), members)


def _parametrised(unit: Any, former: Any) -> Any:
    """A class for one module only, as torch makes one for each: once it is plain again, its class is ``unit``."""
    members = {name: value for name, value in vars(former).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{unit.__name__}", (unit,), members)


def unit_class(unit: Any, basic: nn.Module) -> type[nn.Module]:
    """The class that turns ``basic`` into a ``unit``: the unit's own wherever that has the behaviour of both."""
    former: Any = type(basic)
    parametrised = parametrize.is_parametrized(basic)
    own: Any = former.__bases__[0] if parametrised else former  # torch puts a class of its own in front
    renamed = any(hasattr(basic, name) for name in unit.vector_names)
    own_forward = has_own_forward(basic, unit.basic_type) or renamed
    if own_forward or own_names(own, unit.basic_type):
        unit = combined(unit, own, own_forward, renamed)
    return cast(type[nn.Module], _parametrised(unit, former) if parametrised else unit)


def basic_of(layer: Any) -> Any:
    """The class that ``layer``, a unit, had as a basic one; a new one if other tensors are parametrised by now."""
    basic, parametrised = layer.basic_type, parametrize.is_parametrized(layer)
    if basic.__name__.startswith("Parametrized"):
        computed = {name for name in vars(basic) if not name.startswith("__")}
        if parametrised and set(layer.parametrizations) == computed:
            return basic
        basic = basic.__bases__[0]
    return _parametrised(basic, type(layer)) if parametrised else basic
