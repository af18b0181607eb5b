"""What a network is apart from its tensors: the class and the configuration of every module, by name.

A state dict fits any network of the same keys and shapes, also one of another function: ReLU or GELU, stride 1 or 2.
So a checkpoint notes the structure, and whoever loads it compares.
"""

import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from icnets.convert.state_dicts import plain_name
from icnets.support.hooks import is_own_forward
from icnets.unit.layers import IC_LAYERS
from icnets.unit.subclasses import STATE

Structure = dict[str, dict[str, str]]  # of each module, by name: its class under "", and its attributes, all as text

LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch")
_NOTHING = "torch.Identity"  # also what drops at random, in training only

# Attributes that aren't compared: torch's own, ours, notes, and what acts in training only or not at all.
_SKIPPED = {*vars(nn.Module()), *STATE, "basic_type", "icnets_architecture", "default_cfg"}
_SKIPPED |= {"_model_args", "feature_info", "grad_checkpointing", "inplace", "momentum", "num_classes", "process_group"}
_SKIPPED |= {"fused_attn", "fast_norm"}  # of the machine
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_DROPS = (nn.modules.dropout._DropoutNd, nn.Identity)
_DROP_NAMES = {"DropPath", "DropBlock2d", "DropBlock3d", "StochasticDepth"}

# -- wrappers --------------------------------------------------------------------------------------------------------

_WRAPPERS = {
    **dict.fromkeys(("DistributedDataParallel", "DataParallel", "AveragedModel", "DeepSpeedEngine"), "module"),
    **dict.fromkeys(("ModelEma", "ModelEmaV2", "ModelEmaV3", "_FabricModule"), "module"),
    "OptimizedModule": "_orig_mod",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside wrappers of torch.compile, DDP, DataParallel, AveragedModel, timm and Fabric."""
    while (attribute := _WRAPPERS.get(type(model).__name__)) and isinstance(getattr(model, attribute, None), nn.Module):
        model = getattr(model, attribute)
    return model


# -- the structure ---------------------------------------------------------------------------------------------------


def _text(value: Any) -> str | None:
    """A plain value or a function as text, equal for equal ones; None for what isn't compared."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | str | torch.dtype):
        return repr(value)
    if isinstance(value, int | float):
        return repr(int(value)) if value == value // 1 else repr(float(value))  # 1 and 1.0 are the same
    if isinstance(value, functools.partial):
        value = [value.func, *value.args, *value.keywords.items()]
    elif isinstance(value, (type, *_FUNCTIONS)):
        name = str(getattr(value, "__name__", "<lambda>"))
        return None if name == "<lambda>" else name
    elif isinstance(value, Mapping):
        value = sorted(value.items(), key=repr)
    if not isinstance(value, list | tuple):
        return None
    texts = [_text(part) for part in value]
    return None if None in texts else f"({', '.join(map(str, texts))})"


def _class_of(module: nn.Module) -> str:
    """Library and name of the class, "torch.ReLU"; of a class in none of the libraries ".Net"."""
    cls: Any = module.basic_type if isinstance(module, IC_LAYERS) else type(module)
    if isinstance(module, _DROPS) or cls.__name__ in _DROP_NAMES:
        return _NOTHING
    if parametrize.is_parametrized(module) or hasattr(cls, "_get_fsdp_state"):  # torch put a class in front
        cls = cls.__bases__[-1] if cls.__name__.startswith(("Parametrized", "FSDP")) else cls
    library, name = cls.__module__.partition(".")[0], str(cls.__name__)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # converted to one that is synchronised: the same function
        name = re.sub(r"Sync|[123]d$", "", name)
    return f"{library if library in LIBRARIES else ''}.{name}"


def _attributes(module: nn.Module, own: bool) -> Iterator[tuple[str, str]]:
    """What configures ``module``: plain attributes, and methods replaced on the instance.

    ``own``: its class is in no library, so only functions count: counters and notes look like configuration.
    """
    for name, value in vars(module).items():
        if name in _SKIPPED or "drop" in name or "pretrained" in name:
            continue
        if inspect.isfunction(getattr(type(module), name, None)):  # train() and the like compute nothing
            computes = not is_own_forward(module) if name == "forward" else not hasattr(nn.Module, name)
            accelerated = hasattr(module, f"_original_{name}")  # replaced by Accelerate, for another precision
            if computes and not accelerated and isinstance(value, _FUNCTIONS):
                yield f"{name}()", _text(value) or "a function"
        elif name.startswith("_") or (own and not isinstance(value, _FUNCTIONS)):
            continue
        elif (text := _text(value)) is not None:
            yield name, text


def _entry(module: nn.Module) -> dict[str, str]:
    kind = _class_of(module)
    if kind == _NOTHING:
        return {"": kind}
    entry = {"": kind, **dict(_attributes(module, kind.startswith(".")))}
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        entry["parts"] = repr(list(module._modules))
    return entry


def structure_of(model: nn.Module) -> Structure:
    """Describes the structure of ``model``; an IC unit's is its basic layer's, that of wrapped parts what they wrap."""
    return {plain_name(name): _entry(m) for name, m in model.named_modules(remove_duplicate=False)}


def difference(wanted: Structure, found: Structure, *, complete: bool = False) -> dict[str, bool]:
    """Finds where ``found`` is another network than ``wanted``, in words: "act1 is GELU instead of ReLU".

    Attributes that only one of them has don't count, since versions of a library differ in them, nor do the names of
    classes that are in no library.

    Args:
        wanted, found: from :func:`structure_of`.
        complete: modules that only one of them has count.

    Returns:
        For each difference whether it is certain: in torch's own class, which no version changes.
    """
    differences: dict[str, bool] = {}
    for name in {**wanted, **found}:
        a, b = wanted.get(name), found.get(name)
        where = name or "the network"
        if a is None or b is None:
            if complete:
                differences[f"{where} is {'missing' if b is None else 'new'}"] = False
            continue
        certain = a[""].startswith("torch.") and b[""].startswith("torch.")
        if a[""] != b[""] and not (a[""].startswith(".") and b[""].startswith(".")):
            kinds = f"{b[''].rpartition('.')[2]} instead of {a[''].rpartition('.')[2]}"
            differences[f"{where} is {kinds}"] = certain
            continue
        methods = {key for key in a.keys() ^ b.keys() if key.endswith("()")}
        for key in sorted(methods | {key for key in a.keys() & b.keys() if key and a[key] != b[key]}):
            old, new = a.get(key, "its own"), b.get(key, "its own")
            if certain or "None" not in (old, new):  # None: usually a cache
                differences[f"{where} has {key} {new} instead of {old}"] = certain
    return differences


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that networks are made of, as far as they are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in LIBRARIES}
    return {name: str(version).partition("+")[0] for name, version in found.items() if version is not None}


def vector_keys(model: nn.Module) -> set[str]:
    """Returns the keys in the state dict of ``model`` that IC added, of pruned and parametrised vectors too."""
    units = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, IC_LAYERS)]
    return {f"{name}.{key}" if name else key for name, unit in units for key in unit.vector_keys()}
