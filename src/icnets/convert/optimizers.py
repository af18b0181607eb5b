"""Optimizers and schedules that were built before a conversion: they get its new parameters.

Each new vector is trained wherever its layer's weight is, with the options of the weight's group but without weight
decay. A schedule keeps lists with one entry per group; each gets the entry of the weight's group once more.
"""

import copy
import gc
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from icnets.support.text import few
from icnets.unit.layers import ic_parameters

Site = tuple[Any, int]  # an optimizer and the index of one of its groups

_DECAY = ("weight_decay", "initial_weight_decay", "weight_decay_rate", "wd")
# What schedules of torch and timm keep for each group.
_PER_GROUP = {"base_lrs", "max_lrs", "min_lrs", "lr_lambdas", "base_momentums", "max_momentums", "_last_lr"}
_PER_GROUP |= {"base_values", "warmup_steps", "restore_lr"}
_BUILD_LATER = "build it after convert_"


def weights_of(layer: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that ``layer``'s weight is made of: the largest first, then others that are no bias."""
    named = [(n.removeprefix("parametrizations."), p) for n, p in layer.named_parameters() if "bias" not in n]
    named.sort(key=lambda pair: (pair[0].partition(".")[0].partition("_")[0] != "weight", -pair[1].numel()))
    return [p for _, p in named]


def checked(optimizers: Any) -> list[Any] | None:
    """Lists each of ``optimizers`` once; TypeError for anything but a collection of optimizers."""
    if optimizers is None:
        return None
    if hasattr(optimizers, "param_groups"):
        raise TypeError(f"optimizers is a single {type(optimizers).__name__}; pass a list: optimizers=[optimizer]")
    if not isinstance(optimizers, Iterable) or isinstance(optimizers, str | Tensor):
        raise TypeError(f"optimizers is a {type(optimizers).__name__}; it must be a list of optimizers")
    found = list(optimizers.values() if isinstance(optimizers, Mapping) else optimizers)
    for o in found:
        if not (hasattr(o, "param_groups") and hasattr(o, "add_param_group")):
            raise TypeError(f"optimizers holds a {type(o).__name__}; it must be a list of optimizers")
    return list({id(o.param_groups): o for o in reversed(found)}.values())[::-1]


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
    """The identities of the lists of groups that ``schedule`` may step, by what is among its attributes."""
    values = list(getattr(schedule, "__dict__", {}).values())
    inside = [e for v in values for e in (v if type(v) in (list, tuple) else v.values() if type(v) is dict else ())]
    held = [v for v in values + inside if issubclass(type(v), torch.optim.Optimizer)]
    return {id(v) for v in values} | {id(getattr(v, "param_groups", None)) for v in held}


def _built_schedules(optimizers: Iterable[Any]) -> list[Any]:
    """Objects with a ``step`` that hold one of ``optimizers``, or what it wraps."""
    groups = {id(o.param_groups) for o in optimizers}

    def steps(kind: type) -> bool:
        other = issubclass(kind, torch.optim.Optimizer | nn.Module)
        return not other and any("step" in vars(c) for c in kind.__mro__)

    return _living(steps, lambda o: not groups.isdisjoint(_scheduled(o))) if groups else []


def _innermost(optimizer: Any) -> Any:
    """The optimizer that a wrapper (Lookahead, Lightning's, Accelerate's) hands its steps to."""
    for name in ("_base_optimizer", "base_optimizer", "_optimizer", "optimizer"):
        inner = getattr(optimizer, "__dict__", {}).get(name)
        if isinstance(inner, torch.optim.Optimizer):
            return _innermost(inner)
    return optimizer


# -- what is refused -------------------------------------------------------------------------------------------------


def _refuse_schedule(schedule: Any, groups: list[dict[str, Any]]) -> None:
    """Raises RuntimeError for a schedule with a list of values for the groups that we don't know."""

    def belongs(value: Any, group: dict[str, Any]) -> bool:
        if isinstance(value, int | float | Tensor):
            options = [o for o in group.values() if isinstance(o, float)]
            return any(math.isclose(float(value), o, rel_tol=1e-6) for o in options)
        return value is group or (isinstance(schedule, torch.optim.lr_scheduler.LRScheduler) and callable(value))

    for name, values in vars(schedule).items():
        listed = isinstance(values, list | tuple) and len(values) == len(groups) and values is not groups
        if listed and name not in _PER_GROUP and all(map(belongs, values, groups)):
            what = f"{type(schedule).__name__} schedules an optimizer that was passed, and its {name} seems to hold"
            raise RuntimeError(f"{what} a value for each of the {len(groups)} parameter groups; {_BUILD_LATER}")


def _matrices_only(optimizer: Any, index: int) -> bool:
    """Whether a vector in this group would fail: Muon and its kin orthogonalise, which needs two dimensions."""
    group = optimizer.param_groups[index]
    if "use_muon" in group:
        return bool(group["use_muon"])
    kind = type(_innermost(optimizer))
    return any(word in kind.__name__ for word in ("Muon", "Dion")) and not kind.__module__.startswith("timm.")


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
    of_vectors = [site for p in model.parameters() if p.ndim == 1 for site in sites.get(id(p), [])]
    placed: dict[Site, dict[str, nn.Module]] = {}
    untrained: dict[str, str] = {}
    missed: dict[str, list[nn.Parameter]] = {}
    for name, layer in layers.items():
        weights = weights_of(layer)
        found = next((sites[id(p)] for p in weights if id(p) in sites), [])
        biases = [s for n, p in layer.named_parameters() if "bias" in n for s in sites.get(id(p), [])]
        for site in found:
            placed.setdefault(_for_vectors([site, *biases, *of_vectors]), {})[name] = layer
        if not any(p.requires_grad for p in weights):
            untrained[name] = "its weight is frozen"
        elif optimizers and not found:
            untrained[name] = "no optimizer that was passed trains its weight"
            missed[name] = weights
    if missed and (others := _built_optimizers(p for weights in missed.values() for p in weights)):
        what = f"{type(others[0]).__name__} trains the weights of {few(list(missed))}"
        raise RuntimeError(f"{what} and isn't among the optimizers passed; pass it too, or {_BUILD_LATER}")
    return placed, untrained


def _for_vectors(sites: list[Site]) -> Site:
    """The first site, that of a weight; if the optimizer there takes matrices only, the next that takes vectors."""
    inner = _innermost(sites[0][0])
    if isinstance(inner, torch.optim.LBFGS):
        raise RuntimeError(f"LBFGS trains a single group of parameters and can't get more; {_BUILD_LATER}")
    if (found := next((site for site in sites if not _matrices_only(*site)), None)) is None:
        what = f"{type(inner).__name__} trains matrices only, and none of the optimizers passed trains a vector"
        raise RuntimeError(f"{what} of this model; pass the one that trains its biases or norms too")
    return found


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value) if isinstance(value, list | dict) else value


def _add_group(optimizer: Any, index: int, new: list[tuple[str, nn.Parameter]], undo: ExitStack) -> None:
    """Adds ``new`` with the options of group ``index``, but without weight decay."""
    groups, group = optimizer.param_groups, optimizer.param_groups[index]
    undo.callback(groups.__delitem__, slice(len(groups), None))
    options = {k: _copied(v) for k, v in group.items() if k not in ("params", "param_names")}
    options |= {k: options[k] * 0 for k in _DECAY if options.get(k) is not None}
    # Monitors of learning rates want names that differ.
    for key in {"name", "group_name"} & options.keys():
        taken = {g.get(key) for g in groups}
        tries = (f"{options[key]} (IC{i})" for i in ("", *range(2, len(groups) + 2)))
        options[key] = next(name for name in tries if name not in taken)
    optimizer.add_param_group({"params": new if "param_names" in group else [p for _, p in new], **options})
    _prepare(_innermost(optimizer), [p for _, p in new], undo)
    held = Counter(id(p) for g in optimizer.param_groups for p in g["params"])
    if any(held[id(p)] != 1 for _, p in new):
        raise RuntimeError(f"{type(optimizer).__name__} took no new parameters; {_BUILD_LATER}")


def _prepare(optimizer: Any, new: list[nn.Parameter], undo: ExitStack) -> None:
    """Makes the state that some optimizers make for each parameter when they are built, not at its first step."""
    kind = type(optimizer)
    if kind.__name__ in ("Adagrad", "Adahessian"):
        known = inspect.signature(kind).parameters
        made = kind(new, **{k: v for k, v in optimizer.defaults.items() if k in known})
        optimizer.state.update(made.state)
        undo.callback(lambda: [optimizer.state.pop(p, None) for p in new])


def _extend_schedule(schedule: Any, index: int, groups: list[dict[str, Any]], undo: ExitStack) -> None:
    """Gives each list with an entry for each of ``groups`` the entry of group ``index`` once more."""
    if not type(schedule).__module__.startswith(("torch.optim.", "timm.scheduler")):
        _refuse_schedule(schedule, groups)
    of_decay = getattr(schedule, "param_group_field", None) in _DECAY
    for name in _PER_GROUP & vars(schedule).keys():
        value = vars(schedule)[name]
        if isinstance(value, list | tuple) and len(value) == len(groups):
            entry = _copied(value[index])
            undo.callback(setattr, schedule, name, value)
            setattr(schedule, name, type(value)([*value, entry * 0 if of_decay else entry]))
