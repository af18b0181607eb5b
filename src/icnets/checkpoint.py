"""Checkpoints: safetensors, with what rebuilds the network in the header.

``load(path)`` repeats the surgery by itself: the header names the IC layers with their options, and, for networks made
by a known factory (timm's, torchvision's), the call that makes the basic network. A checksum over all of it finds
damage: safetensors itself would read a flipped bit as another weight.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from icnets.collision import output_channels
from icnets.deploy import FUSED_LAYERS
from icnets.files import atomic_write
from icnets.folding import FoldedNormAct
from icnets.guards import guard_
from icnets.layers import IC_LAYERS, ICLayer, unit_of
from icnets.messages import first_line
from icnets.state_dicts import mismatch, shapes, with_versions
from icnets.subclasses import vector_names

__all__ = ["CheckpointError", "load", "save"]

VERSION = 1

# A checkpoint names one of these and its arguments; nothing else is imported on a file's say-so.
FACTORIES = {
    "timm.create_model": ("timm", "create_model"),
    "torchvision.models.get_model": ("torchvision.models", "get_model"),
}


class CheckpointError(ValueError):
    """A file that ``load`` can't use, with the reason and the remedy in one line."""


def remember_architecture(model: nn.Module, factory: str, args: Mapping[str, Any]) -> None:
    """Notes on ``model`` the call that makes its basic network, for ``save``; ValueError for an unknown factory."""
    if factory not in FACTORIES:
        raise ValueError(f"factory is {factory!r}; it must be one of {', '.join(FACTORIES)}")
    model.__dict__["icnets_architecture"] = {"factory": factory, "args": dict(args)}


def _describe(layer: ICLayer) -> dict[str, Any]:
    return {
        "scale": layer.collision_scale,
        "inner_bias": layer.vectors()[1] is not None,
        "gain": layer.initial_gain,
        "collision_weight": layer.initial_collision_weight,
    }


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every IC unit with what it was made with, by name; a shared unit under each of its names, as its keys are."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: _describe(m) for name, m in modules if isinstance(m, IC_LAYERS)}


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    stores: set[int] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key!r} is a {type(value).__name__}; safetensors holds tensors only")
        value = value.detach().cpu().contiguous()
        store = value.untyped_storage().data_ptr()
        # Tied tensors are written twice: the format refuses shared memory, and loading ties them again.
        tensors[key] = value.clone() if store in stores else value
        stores.add(store)
    return tensors


def _checksum(header: Mapping[str, Any], metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds."""
    notes = {key: value for key, value in metadata.items() if key not in ("format", "icnets")}
    digest = hashlib.sha256(json.dumps([header, notes], sort_keys=True).encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``model`` (IC or basic) to ``path`` as safetensors, atomically.

    Args:
        model: any network, converted or not.
        path: the file; its folder must exist. An existing file is replaced only once the new one is complete.
        architecture: how to make the basic network, ``{"factory": "timm.create_model" or
            "torchvision.models.get_model", "args": {...}}``; known by itself for networks from
            :func:`icnets.create_model` and timm's ``ic_`` names. Without it, ``load`` needs ``model=``.
        metadata: strings to keep in the header under names of your own.
        state: what to write in the place of the model's own state dict, such as an average or gathered shards.

    Raises:
        FileNotFoundError: the folder doesn't exist.
        TypeError: the model is deployed, or its state dict holds something that isn't a tensor.
        ValueError: an unknown factory, or arguments that aren't plain data.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: the folder {path.parent} doesn't exist; create it first")
    if architecture is not None:
        remember_architecture(model, architecture.get("factory", ""), architecture.get("args", {}))
    refuse_deployed(model)
    header = {
        "version": VERSION,
        "architecture": getattr(model, "icnets_architecture", None),
        "layers": describe_layers(model),
    }
    tensors = _tensors(model.state_dict() if state is None else state)
    try:
        header = json.loads(json.dumps(header))  # as it will be read: keys are strings
        header["checksum"] = _checksum(header, metadata or {}, tensors)
        strings = {"format": "pt", **(metadata or {}), "icnets": json.dumps(header, sort_keys=True)}
    except TypeError as error:
        raise ValueError(f"the architecture's arguments must be plain data: {error}") from None
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, strings)


def refuse_deployed(model: nn.Module) -> None:
    """Raises TypeError for a network that ``load`` can't rebuild."""
    if any(isinstance(m, (*FUSED_LAYERS, FoldedNormAct)) for m in model.modules()):
        raise TypeError("the model is deployed (fuse_), which load can't rebuild; save it before fuse_, or export it")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """The header, the tensors and the other metadata of a checkpoint. Raises CheckpointError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); write it again with icnets.save"
        ) from None
    header = _header(path, metadata.pop("icnets", None))
    metadata.pop("format", None)
    checksum = header.pop("checksum", None)  # older files have none
    if checksum not in (None, _checksum(header, metadata, tensors)):
        raise CheckpointError(f"{path} is damaged: its checksum differs; write it again with icnets.save")
    return header, tensors, metadata


def _header(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise CheckpointError(
            f"{path} was not written by icnets.save; load a basic network's weights with load_basic_state_dict"
        )
    try:
        header = json.loads(text)
        version, layers, architecture = header["version"], header["layers"], header["architecture"]
        well_formed = all(isinstance(options, dict) and set(options) == _OPTIONS for options in layers.values())
        well_formed &= architecture is None or set(architecture) == {"factory", "args"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has a damaged icnets header ({error!r}); write it again with icnets.save"
        ) from None
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this icnets reads version {VERSION}: upgrade icnets"
        )
    if not well_formed:
        raise CheckpointError(f"{path} has a damaged icnets header; write it again with icnets.save")
    return dict(header)


_OPTIONS = {"scale", "inner_bias", "gain", "collision_weight"}


def _build(path: Path, architecture: Mapping[str, Any] | None) -> nn.Module:
    if architecture is None:
        raise CheckpointError(f"{path} doesn't say how to make its network; pass the basic one: load(path, model=...)")
    factory = architecture["factory"]
    if factory not in FACTORIES:
        raise CheckpointError(f"{path} names the factory {factory!r}; only {', '.join(FACTORIES)} are called")
    module, function = FACTORIES[factory]
    try:
        model = getattr(importlib.import_module(module), function)(**architecture["args"])
    except ImportError as error:
        raise CheckpointError(f"{path} needs {module}, which can't be imported ({error}); install it") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} asks {factory} for {architecture['args']}, which fails: {first_line(error)}"
        ) from error
    remember_architecture(model, factory, architecture["args"])
    return model


def _check(path: Path, model: nn.Module, layers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Finds every mismatch before the model is touched."""
    modules = dict(model.named_modules(remove_duplicate=False))
    expected = shapes(model.state_dict())
    for name, options in layers.items():
        module = modules.get(name)
        unit = None if module is None else unit_of(module)
        if module is None or unit is None:
            found = "no such module" if module is None else f"a {type(module).__name__}"
            raise CheckpointError(
                f"{path} has an IC unit at {name!r}, where the model has {found}; pass its own network"
            )
        if isinstance(module, IC_LAYERS) and _describe(module) != options:
            raise CheckpointError(
                f"{path} has {options} at {name!r}, the model {_describe(module)}; pass a basic network"
            )
        present = (True, options["inner_bias"], options["gain"] is not None)
        new = [key for key, there in zip(vector_names(unit, module), present, strict=True) if there]
        expected |= {f"{name}.{key}" if name else key: (output_channels(module),) for key in new}
    problem = mismatch(expected, shapes(tensors))
    if problem is not None:
        raise CheckpointError(f"{path} doesn't fit the model: {problem}")


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Rebuilds the network of a checkpoint, on the CPU and in eval mode, without repeating the surgery.

    Args:
        path: a file from :func:`save`.
        model: the basic network (its weights don't matter), for networks of your own; it is converted in place and
            returned. Networks from timm and torchvision are made anew.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign, or doesn't fit ``model``, which is then
            unchanged.
    """
    path = Path(path)
    header, tensors, _ = read(path)
    if model is None:
        model = _build(path, header["architecture"])
    _check(path, model, header["layers"], tensors)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, options in header["layers"].items():
        module = modules[name]
        if not isinstance(module, IC_LAYERS):
            kind = unit_of(module)
            assert kind is not None
            kind.take_over_(module, **options)
    guard_(model)
    with torch.no_grad():
        model.load_state_dict(with_versions(tensors, model.state_dict()))
    return model.eval()
