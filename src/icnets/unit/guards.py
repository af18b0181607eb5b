"""Who would take an IC unit for its weight and bias alone, refused where it can be noticed.

Other tools know torch's convolutions, and an IC unit is one. Those that make another layer of a unit's weight lose its
collision, and so another function comes out. Four ways are noticed: a method that merges branches (shadowed, on the
instance, until ``revert_``), another weight of the same shape in eval mode, another layer in a unit's place, and an
adapter around a unit, as peft makes them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._pytree import tree_leaves

from icnets.support.plain import deepcopy
from icnets.unit.readers import merging, resolve

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
        read = [owner for chain in merging(cls).get(self.method, ((),)) for owner in resolve(self.module, chain)]
        collide = any(isinstance(m, Colliding) and m.collides() for owner in read for m in owner.modules())
        if collide and _makes(method, self.module, args, kwargs):
            what = f"{self.method} of {cls.__name__} reads the weights of IC units and would lose their collisions"
            raise TypeError(f"{what}; {_REMEDY}; if it keeps them, call type(module).{self.method}(module)")
        return method(self.module, *args, **kwargs)


def _makes(method: Any, module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether ``method``, on a copy, makes or removes modules or tensors, or writes into a weight."""
    twin, args, kwargs = deepcopy(module, args, kwargs)
    before, known = _form(twin), set(twin.modules())
    weights = {m: w.detach().clone() for m in known if (w := m._parameters.get("weight")) is not None}
    with torch.random.fork_rng(devices=[]):
        result = method(twin, *args, **kwargs)
    there = [leaf for leaf in (*tree_leaves(result), *twin.modules()) if isinstance(leaf, nn.Module)]
    if not known.issuperset(there) or _form(twin) != before:
        return True
    return any(not _equal(weight, m.weight) for m, weight in weights.items())


def _form(module: nn.Module) -> dict[str, tuple[type, set[str]]]:
    """The class of each module and the names of the tensors that it holds, by the module's name."""
    found = {}
    for name, m in module.named_modules():
        held = {k for own in (vars(m), m._parameters, m._buffers) for k, v in own.items() if isinstance(v, Tensor)}
        found[name] = type(m), held
    return found


class Colliding(nn.Module):
    """A layer of torch's that is more than its weight and bias: an IC unit, or its deployed form."""

    weight: Any
    bias: Any
    # torch's, of convolutions
    in_channels: int
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def collides(self) -> bool:
        """Whether the weight and bias alone would be another function."""
        return True

    def __prepare_scriptable__(self) -> Any:
        what = f"{type(self).__name__} can't be compiled by torch.jit.script, which torch has deprecated"
        raise NotImplementedError(f"{what}; use torch.export.export(model, ...), or torch.jit.trace(model, ...)")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        old = self.__dict__.get("_parameters", {}).get(name)
        refused = name == "weight" and not self.training and not self.__dict__.get("_loading")
        if refused and _is_another(old, param) and self.collides():
            what = f"{type(self).__name__} in eval mode was given other values, which would lose its collision"
            raise TypeError(f"the weight of a {what}; {_REMEDY}; if another function is meant, copy_ into the weight")
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


def _shadow_(parent: nn.Module) -> None:
    kind: Any = type(parent)
    for method in merging(kind):
        parent.__dict__.setdefault(method, Refusal(parent, method))


def is_adapter(module: nn.Module) -> bool:
    """Whether the module is a class of peft's for adapters, whose ``base_layer`` is the layer that it adapts."""
    return hasattr(type(module), "adapter_layer_names")


def _registered(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Called by torch whenever a module becomes another's child."""
    old = parent._modules.get(name)
    if isinstance(old, Colliding) and new is not None and new is not old and old.collides() and _taken(old, new):
        what = f"a {type(new).__name__} would replace {name!r}, a {type(old).__name__}, and lose its collision"
        raise TypeError(f"{what}; {_REMEDY}; if another function is meant, del module.{name} first")
    adapted = new.modules() if new is not None and name == "base_layer" and is_adapter(parent) else ()
    if units := [type(m).__name__ for m in adapted if isinstance(m, Colliding)]:
        what = f"the adapter {type(parent).__name__} can't be put on a {units[0]}: merging it would lose the collision"
        raise TypeError(f"{what}; apply it to the basic network, or leave IC units out of target_modules")
    if isinstance(new, Colliding):
        _shadow_(parent)


register_module_module_registration_hook(_registered)


def guard_(model: nn.Module) -> None:
    """Shadows the methods that would merge the IC units of ``model``."""
    for module in model.modules():
        if not isinstance(module, Colliding) and any(isinstance(m, Colliding) for m in module.modules()):
            _shadow_(module)


def unguard_(model: nn.Module) -> None:
    """Gives every module its own methods back."""
    for module in model.modules():
        for method in [name for name, value in module.__dict__.items() if isinstance(value, Refusal)]:
            del module.__dict__[method]
