"""Who would take an IC unit for its weight and bias alone, refused where it can be noticed.

Other tools know torch's convolutions, and an IC unit is one. Those that make another layer of a unit's weight lose its
collision, and so another function comes out. Three ways are noticed: a method that merges branches (shadowed, on the
instance, until ``revert_``), another weight of the same shape in eval mode, and another layer in a unit's place.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._pytree import tree_leaves

from icnets.support.plain import deepcopy
from icnets.unit.readers import computes_with_weight, merging, owners, repeats

_REMEDY = "call icnets.fuse_(model), or icnets.revert_(model) before it"


class Refusal:
    """Stands in for a method that may merge branches: raises TypeError where that would lose a collision.

    While units that it may read collide, it is tried on a copy. It can be copied and pickled with its module.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self.module, self.method = module, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cls: Any = type(self.module)
        method = getattr(cls, self.method)
        below = owners(self.module, merging(cls).get(self.method, (None,)))
        if any(isinstance(m, Colliding) and m.collides() for m in below) and _makes(method, self.module, args, kwargs):
            remedy = "leave the adapter unmerged" if any(map(is_adapter, self.module.modules())) else _REMEDY
            raise TypeError(
                f"{self.method} of {cls.__name__} reads the weights of layers that are IC units, and would lose their "
                f"collisions; {remedy}; if it keeps them, call type(module).{self.method}(module)"
            )
        return method(self.module, *args, **kwargs)


def _makes(method: Any, module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether ``method``, on a copy, makes or removes modules or tensors, or writes into a weight."""
    twin, *given = deepcopy(module, args, kwargs)
    before, known = _contents(twin), set(twin.modules())
    with torch.random.fork_rng(devices=[]):
        result = method(twin, *given[0], **given[1])
    after = _contents(twin)
    made = any(isinstance(leaf, nn.Module) and leaf not in known for leaf in tree_leaves(result))
    if made or before.keys() != after.keys():
        return True
    return any(value is not after[key] and not _same(value, after[key]) for key, value in before.items())


def _contents(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Classes of the modules, names of the tensors that they hold, and the values of the weights."""
    found: dict[tuple[str, str], Any] = {}
    for name, m in module.named_modules():
        tensors = {
            k: v for own in (vars(m), m._parameters, m._buffers) for k, v in own.items() if isinstance(v, Tensor)
        }
        found |= {(name, k): v.detach().clone() if k == "weight" else None for k, v in tensors.items()}
        found[name, ""] = type(m)
    return found


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


class Colliding(nn.Module):
    """A layer of torch's that is more than its weight and bias: an IC unit, or its deployed form."""

    def collides(self) -> bool:
        """Whether the weight and bias alone would be another function."""
        return True

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} can't be compiled by torch.jit.script, which torch has deprecated; use "
            "torch.export.export(model, ...), or torch.jit.trace(model, ...)"
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        old = self.__dict__.get("_parameters", {}).get(name)
        refused = name == "weight" and not self.training and not self.__dict__.get("_loading")
        if refused and _is_another(old, param) and self.collides():
            raise TypeError(
                f"the weight of a {type(self).__name__} in eval mode was given other values, as by folding a norm into "
                f"it, which would lose its collision; {_REMEDY}; if another function is meant, copy_ into the weight"
            )
        super().register_parameter(name, param)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_loading"] = True  # with assign=True it gives us new Parameters
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            del self.__dict__["_loading"]


def _is_another(old: Tensor | None, new: Tensor | None) -> bool:
    """Whether ``new`` is a plain Parameter of the shape of ``old`` with other values."""
    if new is None or old is None or new is old or not (type(old.data) is type(new.data) is Tensor):
        return False
    return new.shape == old.shape and not _equal(old, new)


def _equal(old: Tensor, new: Tensor) -> bool:
    if old.is_meta or new.is_meta:
        return True
    with torch.no_grad():
        dense = new.to_dense() if new.is_mkldnn else new
        return dense.shape == old.shape and torch.equal(dense.to(old.device, old.dtype), old)


def _taken(old: Colliding, new: nn.Module) -> bool:
    """Whether ``new`` looks like ``old`` made anew of its weight: as many values, and the same ones if in training."""
    if isinstance(new, Colliding) or any(m is old for m in new.modules()):
        return False
    weight: Any = old.weight
    alike = [t for t in (*new.parameters(), *new.buffers()) if t.numel() == weight.numel() and not t.is_sparse]
    return any(not old.training or _equal(weight, t) for t in alike)


def is_adapter(module: nn.Module) -> bool:
    """Whether the module is a layer's adapter, as peft makes them: the layer itself is its ``base_layer``."""
    return hasattr(type(module), "adapter_layer_names") and "base_layer" in module._modules


def _adopted(parent: nn.Module, name: str, layer: Colliding) -> None:
    """What follows from ``layer`` being the child ``name`` of ``parent``."""
    kind: Any = type(parent)
    _own_class(layer)
    if name == "base_layer" and hasattr(kind, "adapter_layer_names"):
        if computes_with_weight(kind, name):
            raise TypeError(
                f"{kind.__module__}.{kind.__name__} computes with the weight of its base layer, a "
                f"{type(layer).__name__}, without calling it, and would lose its collision; leave IC units out of "
                "target_modules, or the layer out of the conversion by filter_fn"
            )
        own: Any = type(layer)
        layer.__class__ = _under_adapter(own)
    for method in merging(kind):
        parent.__dict__.setdefault(method, Refusal(parent, method))


def _registered(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Called by torch whenever a module becomes another's child."""
    old = parent._modules.get(name)
    if isinstance(old, Colliding) and new is not None and new is not old and old.collides() and _taken(old, new):
        raise TypeError(
            f"a {type(new).__name__} with a weight as large as that of {name!r}, a {type(old).__name__}, would replace "
            f"it and lose its collision; {_REMEDY}; if another function is meant, del module.{name} first"
        )
    if isinstance(new, Colliding):
        _adopted(parent, name, new)


register_module_module_registration_hook(_registered)


# -- adapters ---------------------------------------------------------------------------------------------------------


@cache
def _under_adapter(cls: Any) -> Any:
    """A subclass of ``cls`` that makes torch's layer when it is called: adapters make their factors by type(layer)."""
    basic = next(c for c in cls.__mro__ if c.__module__.startswith("torch."))

    def make(own: Any, *args: Any, **kwargs: Any) -> Any:
        return basic(*args, **kwargs) if args or kwargs else cls.__new__(own)

    def reduce(self: Any, protocol: Any) -> Any:
        restore, args, *state = cls.__reduce_ex__(self, protocol)
        return _restore, (restore, tuple(cls if a is adapted else a for a in args)), *state

    members: dict[str, Any] = {"__module__": cls.__module__, "__new__": make, "__reduce_ex__": reduce}
    members["_without_adapter"] = cls
    adapted = type(cls.__name__, (cls,), members)
    return adapted


def _own_class(layer: Any) -> None:
    own = vars(type(layer)).get("_without_adapter")
    if own is not None:
        layer.__class__ = own


def _restore(restore: Any, args: tuple[Any, ...]) -> Any:
    layer = restore(*args)
    own: Any = type(layer)
    layer.__class__ = _under_adapter(own)
    return layer


# -- for a whole network ----------------------------------------------------------------------------------------------


def adapters(model: nn.Module) -> dict[nn.Module, str]:
    """Each module that belongs to an adapter and not to the network, or with whose weight one computes; with why."""
    found: dict[nn.Module, str] = {}
    for adapter in filter(is_adapter, model.modules()):
        kind: Any = type(adapter)
        for name, child in adapter.named_children():
            if name != "base_layer":
                found |= dict.fromkeys(child.modules(), f"it belongs to an adapter ({kind.__name__})")
            elif computes_with_weight(kind, name):
                reason = f"an adapter ({kind.__name__}) reads its weight without calling it"
                found |= dict.fromkeys(child.modules(), reason)
    return found


def guard_(model: nn.Module) -> None:
    """Shadows the methods that would merge the IC units of ``model``, and prepares units below adapters for these."""
    above = [m for m in model.modules() if not isinstance(m, Colliding)]
    above = [m for m in above if any(isinstance(child, Colliding) for child in m.modules())]
    merged: set[str] = set()
    for module in reversed(above):  # children first
        for name, child in module.named_children():
            if isinstance(child, Colliding):
                _adopted(module, name, child)
        kind: Any = type(module)
        own = merging(kind)
        merged |= own.keys()
        for method in (*own, *(n for n in merged if repeats(module, n))):
            module.__dict__.setdefault(method, Refusal(module, method))


def unguard_(model: nn.Module) -> None:
    """Gives every module its own methods back."""
    for module in model.modules():
        for method in [name for name, value in module.__dict__.items() if isinstance(value, Refusal)]:
            del module.__dict__[method]
