"""What a network is apart from its tensors: the class and the configuration of every module, by name.

A state dict fits any network of the same keys and shapes, also one of another function: ReLU or GELU, stride 1 or 2.
So a checkpoint notes the structure, and whoever loads it compares.
"""

import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from icnets.convert.state_dicts import plain_name
from icnets.support.hooks import is_own_forward
from icnets.unit.layers import IC_LAYERS

Structure = dict[str, dict[str, str]]  # of each module, by name: its class under "", and its attributes, all as text

LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch")
_NOTHING = "torch.Identity"  # also what drops at random, in training only
_DROPS = ("Identity", "DropPath", "DropBlock2d", "DropBlock3d", "StochasticDepth")
_IN_TRAINING_ONLY = {"momentum", "inplace", "dropout"}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)

# -- wrappers --------------------------------------------------------------------------------------------------------

_EMAS = ("AveragedModel", "ModelEma", "ModelEmaV2", "ModelEmaV3")
_IN_MODULE = ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "_FabricModule", *_EMAS)
_WRAPPERS = {**dict.fromkeys(_IN_MODULE, "module"), "OptimizedModule": "_orig_mod"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside wrappers of torch.compile, DDP, DataParallel, AveragedModel, timm and Fabric."""
    while (attribute := _WRAPPERS.get(type(model).__name__)) and isinstance(getattr(model, attribute, None), nn.Module):
        model = getattr(model, attribute)
    return model


# -- the structure ---------------------------------------------------------------------------------------------------


def _class_of(module: nn.Module) -> str:
    """Library and name of the class, "torch.ReLU"; of a class in none of the libraries ".Net"."""
    cls: Any = module.basic_type if isinstance(module, IC_LAYERS) else type(module)
    if isinstance(module, nn.modules.dropout._DropoutNd) or cls.__name__ in _DROPS:
        return _NOTHING
    if parametrize.is_parametrized(module) or hasattr(cls, "_get_fsdp_state"):  # torch put a class in front
        cls = cls.__bases__[-1] if cls.__name__.startswith(("Parametrized", "FSDP")) else cls
    library, name = cls.__module__.partition(".")[0], str(cls.__name__)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # converted to one that is synchronised: the same function
        name = re.sub(r"Sync|[123]d$", "", name)
    return f"{library if library in LIBRARIES else ''}.{name}"


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)  # 1 and 1.0 are the same


def _functions(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the functions among the attributes of ``module``, and of methods replaced on the instance."""
    for key, value in [(k, v) for k, v in vars(module).items() if isinstance(v, _FUNCTIONS)]:
        name = getattr(value, "__name__", "<lambda>")
        if inspect.isfunction(getattr(type(module), key, None)):  # train() and the like compute nothing
            computes = not is_own_forward(module) if key == "forward" else not hasattr(nn.Module, key)
            if computes and not hasattr(module, f"_original_{key}"):  # by Accelerate, for another precision
                yield f"{key}()", "a function" if name == "<lambda>" else name
        elif name != "<lambda>" and not key.startswith("_"):
            yield key, name


def _entry(module: nn.Module) -> dict[str, str]:
    """Describes a module: class, functions, and what torch lists as the constants of its configuration."""
    kind = _class_of(module)
    if kind == _NOTHING:
        return {"": kind}
    entry = {"": kind, **dict(_functions(module))}
    for name in {*getattr(module, "__constants__", ()), "num_heads"} - _IN_TRAINING_ONLY:
        if isinstance(value := getattr(module, name, ...), bool | int | float | str | tuple | list | None):
            entry[name] = _text(value)
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
        a, b, where = wanted.get(name), found.get(name), name or "the network"
        if a is None or b is None:
            differences |= {f"{where} is {'missing' if b is None else 'new'}": False} if complete else {}
            continue
        certain = a[""].startswith("torch.") and b[""].startswith("torch.")
        if a[""] != b[""] and not (a[""].startswith(".") and b[""].startswith(".")):
            differences[f"{where} is {b[''].rpartition('.')[2]} instead of {a[''].rpartition('.')[2]}"] = certain
            continue
        methods = {key for key in a.keys() ^ b.keys() if key.endswith("()")}
        for key in sorted(methods | {key for key in a.keys() & b.keys() if key and a[key] != b[key]}):
            differences[f"{where} has {key} {b.get(key, 'its own')} instead of {a.get(key, 'its own')}"] = certain
    return differences


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that networks are made of, as far as they are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in LIBRARIES}
    return {name: str(version).partition("+")[0] for name, version in found.items() if version is not None}


def vector_keys(model: nn.Module) -> set[str]:
    """Returns the keys in the state dict of ``model`` that IC added, of pruned and parametrised vectors too."""
    units = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, IC_LAYERS)]
    return {f"{name}.{key}" if name else key for name, unit in units for key in unit.vector_keys()}
