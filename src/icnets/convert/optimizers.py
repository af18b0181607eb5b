"""Optimizers and schedules that were built before a conversion: they get its new parameters.

Each new vector is trained wherever its layer's weight is, with the options of the weight's group but without weight
decay. A schedule of torch keeps lists with one entry per group; each gets the entry of the weight's group once more.
"""

import gc
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from icnets.support.text import few
from icnets.unit.layers import ic_parameters

Site = tuple[Any, int]  # an optimizer and the index of one of its groups

_DECAY = ("weight_decay", "weight_decay_rate", "wd")
_NAMES = ("params", "param_names", "name", "group_name")  # of groups, each its own
# What schedules of torch keep for each group.
_PER_GROUP = ("base_lrs", "max_lrs", "min_lrs", "lr_lambdas", "base_momentums", "max_momentums", "_last_lr")
# They have a single group, make a parameter's state when they are built, or take matrices only.
_FIXED = ("LBFGS", "Adagrad", "Adahessian", "Muon", "Dion")
_BUILD_LATER = "build it after convert_"


def checked(optimizers: Any) -> list[Any] | None:
    """Lists each of ``optimizers`` once; TypeError for anything but a collection of optimizers."""
    if optimizers is None:
        return None
    if not isinstance(optimizers, Iterable):
        raise TypeError(f"optimizers is a {type(optimizers).__name__}; pass a list: optimizers=[optimizer]")
    found = list(optimizers.values() if isinstance(optimizers, Mapping) else optimizers)
    for o in found:
        if not (hasattr(o, "param_groups") and hasattr(o, "add_param_group")):
            raise TypeError(f"optimizers holds a {type(o).__name__}; it must be a list of optimizers")
    return list({id(o.param_groups): o for o in found}.values())


# -- what exists -----------------------------------------------------------------------------------------------------


def _living(kind: Callable[[type], bool], wanted: Callable[[Any], bool]) -> list[Any]:
    """The ``wanted`` among the objects of a type that is ``kind``; objects of other types aren't touched."""

    def find() -> list[Any]:
        objects = gc.get_objects()
        kinds = {k for k in set(map(type, objects)) if kind(k)}
        return [o for o in objects if type(o) in kinds and wanted(o)]

    if not find():
        return []
    gc.collect()  # a schedule and its optimizer refer to each other, and so outlive their last use
    return find()


def _built_optimizers(parameters: Iterable[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """The optimizers that train any of ``parameters``."""
    ours = {id(p) for p in parameters}

    def trains(o: Any) -> bool:
        return any(id(p) in ours for g in getattr(o, "param_groups", ()) for p in g["params"])

    return _living(lambda kind: issubclass(kind, torch.optim.Optimizer), trains)


def _scheduled(schedule: Any) -> set[int]:
    """The identities of the lists of groups of the optimizers among the attributes of ``schedule``."""
    held = [v for v in getattr(schedule, "__dict__", {}).values() if issubclass(type(v), torch.optim.Optimizer)]
    return {id(getattr(v, "param_groups", None)) for v in held}


def _built_schedules(optimizers: Iterable[Any]) -> list[Any]:
    """Objects with a ``step`` that hold one of ``optimizers``, or what it wraps."""
    groups = {id(o.param_groups) for o in optimizers}

    def steps(kind: type) -> bool:
        other = issubclass(kind, torch.optim.Optimizer | nn.Module)
        return not other and any("step" in vars(c) for c in kind.__mro__)

    return _living(steps, lambda o: not groups.isdisjoint(_scheduled(o))) if groups else []


# -- the extension ---------------------------------------------------------------------------------------------------


def extend_(
    model: nn.Module, layers: Mapping[str, nn.Module], optimizers: list[Any] | None, undo: ExitStack
) -> dict[str, str]:
    """Adds the vectors of ``layers``, which have just become IC units of ``model``, to the optimizers.

    Args:
        model: holds the layers.
        layers: the units by name.
        optimizers: of :func:`checked`; None: no optimizer may train the model.
        undo: gets what puts the optimizers and their schedules back.

    Returns:
        Names of the layers whose vectors nothing will train, with the reason.

    Raises:
        RuntimeError: an optimizer that trains ``model`` exists and wasn't passed; or it, or a schedule that runs on it,
            can't take the vectors.
    """
    if layers and optimizers is None and _built_optimizers(model.parameters()):
        remedy = "build it after the conversion, or pass it as optimizers=[...], or optimizers=() if it isn't used"
        raise RuntimeError(f"an optimizer that trains this model would miss the new parameters; {remedy}")
    placed, untrained = _placed(model, layers, optimizers or [])
    schedules = _built_schedules(optimizer for optimizer, _ in placed)
    for (optimizer, index), own in placed.items():
        new = [(f"{name}.{v}" if name else v, p) for name, layer in own.items() for v, p in ic_parameters(layer)]
        for schedule in schedules:
            if id(optimizer.param_groups) in _scheduled(schedule):
                _extend_schedule(schedule, index, optimizer.param_groups, undo)
        _add_group(optimizer, index, new, undo)
    return untrained


def _placed(
    model: nn.Module, layers: Mapping[str, nn.Module], optimizers: list[Any]
) -> tuple[dict[Site, dict[str, nn.Module]], dict[str, str]]:
    """For each group of an optimizer the layers whose vectors it gets, and for others why nothing trains theirs."""
    sites: dict[int, list[Site]] = {}  # of each parameter, by identity
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                sites.setdefault(id(p), []).append((optimizer, index))
    if optimizers and layers and not any(id(p) in sites for p in model.parameters()):
        raise RuntimeError(f"none of the optimizers passed trains a parameter of this model; {_BUILD_LATER}")
    placed: dict[Site, dict[str, nn.Module]] = {}
    untrained: dict[str, str] = {}
    missed: dict[str, list[nn.Parameter]] = {}
    for name, layer in layers.items():
        # What the weight is made of comes first: the largest.
        weights = sorted((p for n, p in layer.named_parameters() if "bias" not in n), key=lambda p: -p.numel())
        found = next((sites[id(p)] for p in weights if id(p) in sites), [])
        for site in found:
            placed.setdefault(site, {})[name] = layer
        if not any(p.requires_grad for p in weights):
            untrained[name] = "its weight is frozen"
        elif optimizers and not found:
            untrained[name] = "no optimizer that was passed trains its weight"
            missed[name] = weights
    if missed and (others := _built_optimizers(p for weights in missed.values() for p in weights)):
        what = f"{type(others[0]).__name__} trains the weights of {few(list(missed))}"
        raise RuntimeError(f"{what} and isn't among the optimizers passed; pass it too, or {_BUILD_LATER}")
    return placed, untrained


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _add_group(optimizer: Any, index: int, new: list[tuple[str, nn.Parameter]], undo: ExitStack) -> None:
    """Adds ``new`` with the options of group ``index``, but without weight decay."""
    groups, group = optimizer.param_groups, optimizer.param_groups[index]
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # Lightning's and Accelerate's wrap one
    if group.get("use_muon", any(word in kind for word in _FIXED)):
        raise RuntimeError(f"{kind} can't take vectors later on; {_BUILD_LATER}")
    undo.callback(groups.__delitem__, slice(len(groups), None))
    options = {k: v * 0 if k in _DECAY and v is not None else _copied(v) for k, v in group.items() if k not in _NAMES}
    optimizer.add_param_group({"params": new if "param_names" in group else [p for _, p in new], **options})


def _extend_schedule(schedule: Any, index: int, groups: list[dict[str, Any]], undo: ExitStack) -> None:
    """Gives each list with an entry for each of ``groups`` the entry of group ``index`` once more.

    Raises RuntimeError for a schedule that isn't torch's and has a list of numbers for the groups.
    """
    lists = {k: v for k, v in vars(schedule).items() if isinstance(v, list | tuple) and len(v) == len(groups)}
    if not type(schedule).__module__.startswith("torch.optim."):
        options = [[v for v in group.values() if isinstance(v, float)] for group in groups]
        pairs = [zip(values, options, strict=True) for values in lists.values()]
        by_group = any(all(isinstance(v, float) and v in own for v, own in several) for several in pairs)
        if by_group or isinstance(schedule, LRScheduler):
            raise RuntimeError(f"{type(schedule).__name__} schedules an optimizer that was passed; {_BUILD_LATER}")
    for name in lists.keys() & set(_PER_GROUP):
        undo.callback(setattr, schedule, name, lists[name])
        setattr(schedule, name, type(lists[name])([*lists[name], _copied(lists[name][index])]))
