"""Checkpoints: safetensors, with what rebuilds the network in the header.

``load(path)`` repeats the surgery by itself: the header names the IC layers with their options, and, for networks made
by a known factory (timm's, torchvision's), the call that makes the basic network. It also notes the structure, which
``load`` compares, and a checksum over all of it finds damage: safetensors itself would read a flipped bit as another
weight.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from icnets.checkpoint.architectures import FACTORIES, confirmed, make, remember_architecture
from icnets.checkpoint.foreign import foreign
from icnets.convert.optimizers import checked
from icnets.convert.state_dicts import (
    mismatch,
    on_meta,
    plain_name,
    plain_tensor,
    shapes,
    unloadable,
    with_versions,
    without_wrapper,
)
from icnets.convert.structure import difference, in_words, structure_of, unwrapped, versions
from icnets.convert.surgery import obstacle, planned
from icnets.convert.wrapped import refuse_sharded, refuse_wrapped
from icnets.deploy.batch_norm import FoldedNormAct
from icnets.support.files import atomic_write
from icnets.support.text import few, first_line
from icnets.support.undo import Undo
from icnets.unit.collision import output_channels
from icnets.unit.deployed import FUSED_LAYERS
from icnets.unit.guards import guard_
from icnets.unit.layers import IC_LAYERS, ICLayer, ic_parameters, unit_of
from icnets.unit.subclasses import vector_names

__all__ = ["CheckpointError", "load", "load_with_notes", "save"]

VERSION = 1


class CheckpointError(ValueError):
    """A file that ``load`` can't use, with the reason and the remedy in one line."""


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
    return {plain_name(name): _describe(m) for name, m in modules if isinstance(m, IC_LAYERS)}


def _tensors(model: nn.Module, state: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """What to write: of ``model``, or ``state`` if that fits it. Raises TypeError, ValueError if it can't be loaded."""
    own = {plain_name(key): value for key, value in model.state_dict().items()}
    found = own if state is None else without_wrapper(state, own)
    if state is not None and (problem := mismatch(shapes(own), shapes(found))):
        raise ValueError(f"state doesn't fit the model: {problem}; pass a whole state dict of this model")
    tensors: dict[str, Tensor] = {}
    stores: set[int] = set()
    for key, value in found.items():
        value = plain_tensor(key, value)
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
        model: any network, converted or not. Of one inside torch.compile, DDP, DataParallel, AveragedModel, timm's
            ModelEma or Fabric the network itself is written.
        path: the file; its folder must exist. An existing file is replaced only once the new one is complete.
        architecture: how to make the basic network, ``{"factory": "timm.create_model" or
            "torchvision.models.get_model", "args": {...}}``; known by itself for networks from
            :func:`icnets.create_model` and timm's ``ic_`` names. Without it, ``load`` needs ``model=``.
        metadata: strings to keep in the header under names of your own.
        state: what to write in the place of the model's own state dict, such as an average or gathered shards; the
            prefixes of such wrappers are taken off.

    A network that isn't any more what the noted call makes is compared when it is saved: where other arguments make it
    (after ``reset_classifier``), those are written; otherwise none are, with a UserWarning that names the difference.

    Raises:
        FileNotFoundError: the folder doesn't exist.
        TypeError: the model is deployed or scripted, or its state dict holds something that isn't a plain
            tensor with values (meta, sharded, quantised, pruned collisions).
        ValueError: an unknown factory, arguments that aren't plain data, an ``architecture`` that makes another
            network, or a ``state`` that doesn't fit the model.

    Example:
        >>> save(model, "ic.safetensors", metadata={"mean": "0.5"})
        >>> model = load("ic.safetensors", basic)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: the folder {path.parent} doesn't exist; create it first")
    tensors, strings, claim = prepare(model, architecture, metadata, state)
    write(path, tensors, strings)
    if architecture is not None and claim is not None:
        remember_architecture(unwrapped(model), **claim)


def write(path: Path, tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> None:
    """Writes what :func:`prepare` made, atomically."""
    with atomic_write(path) as temporary:
        save_file(dict(tensors), temporary, dict(strings))


def prepare(
    model: nn.Module,
    architecture: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any] | None]:
    """The tensors and the strings of a checkpoint, and the call that makes its network. Raises what ``save`` raises."""
    model = unwrapped(model)
    _refuse_unloadable(model, metadata or {})
    tensors = _tensors(model, state)
    claim, changed = confirmed(model, architecture)
    header: dict[str, Any] = {
        "version": VERSION,
        "architecture": claim,
        "layers": describe_layers(model),
        "structure": structure_of(model),
        "versions": versions(),
        **({"changed": changed} if changed else {}),
    }
    header = json.loads(json.dumps(header))  # as it will be read: keys are strings
    header["checksum"] = _checksum(header, metadata or {}, tensors)
    return tensors, {"format": "pt", **(metadata or {}), "icnets": json.dumps(header, sort_keys=True)}, claim


def _refuse_unloadable(model: Any, metadata: Mapping[str, Any]) -> None:
    """Raises TypeError for a network that ``load`` can't rebuild, and for notes that aren't strings."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; save takes the network, an nn.Module, and weights as state="
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] is a {type(value).__name__}; it must be a string")
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(
            "the model is inside FullyShardedDataParallel, which flattens it; gather the weights "
            "(FullStateDictConfig), and save the network without FSDP, which may be on meta, with them as state="
        )
    if any(isinstance(m, (*FUSED_LAYERS, FoldedNormAct)) for m in model.modules()):
        raise TypeError("the model is deployed (fuse_), which load can't rebuild; save it before fuse_, or export it")
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise TypeError("the model is scripted; save the nn.Module that it was made from")
    for name, unit in model.named_modules():
        if isinstance(unit, IC_LAYERS) and not unit._parameters.keys() >= set(unit.vector_names):
            raise TypeError(
                f"the collision of {name!r} is pruned or parametrised, which load can't rebuild; make that permanent "
                "first (torch.nn.utils.prune.remove, parametrize.remove_parametrizations)"
            )


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """The header, the tensors and the other metadata of a checkpoint. Raises CheckpointError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path} {foreign(path)}" if path.is_dir() else f"there is no checkpoint {path}; check the path"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        what = (
            foreign(path) or f"is not a whole safetensors file ({first_line(error)}); write it again with icnets.save"
        )
        raise CheckpointError(f"{path} {what}") from None
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
        well_formed &= all(isinstance(text, str) for e in header.get("structure", {}).values() for text in (e[""], *e))
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


def _build(path: Path, header: Mapping[str, Any]) -> nn.Module:
    architecture = header["architecture"]
    if architecture is None:
        why = f": {header['changed']}" if "changed" in header else ""
        raise CheckpointError(
            f"{path} doesn't say how to make its network{why}; pass the basic one: load(path, model=...)"
        )
    factory, args = architecture["factory"], architecture["args"]
    if factory not in FACTORIES:
        raise CheckpointError(f"{path} names the factory {factory!r}; only {', '.join(FACTORIES)} are called")
    try:
        model = make(factory, args)
    except ImportError as error:
        module = FACTORIES[factory][0]
        raise CheckpointError(f"{path} needs {module}, which can't be imported ({error}); install it") from None
    except Exception as error:
        raise CheckpointError(f"{path} asks {factory} for {args}, which fails: {first_line(error)}") from error
    remember_architecture(model, factory, args)
    return model


def _to_convert(path: Path, model: nn.Module, layers: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The basic layers of ``model`` that are IC units in the file, by name; CheckpointError where none can be."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name, options in layers.items():
        module = modules.get(name)
        if module is None or unit_of(module) is None:
            there = "no such module" if module is None else f"a {type(module).__name__}"
            raise CheckpointError(
                f"{path} has an IC unit at {name!r}, where the model has {there}; pass its own network"
            )
        if not isinstance(module, IC_LAYERS):
            if (reason := obstacle(module)) is not None:
                raise CheckpointError(
                    f"{path} has an IC unit at {name!r}, which can't become one: {reason}; pass its own network"
                )
            found[name] = module
        elif _describe(module) != options:
            raise CheckpointError(
                f"{path} has {options} at {name!r}, the model {_describe(module)}; pass a basic network"
            )
    return found


def _check(
    path: Path,
    model: nn.Module,
    header: Mapping[str, Any],
    chosen: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
) -> None:
    """Finds every mismatch of the tensors before the model is touched."""
    expected = shapes(model.state_dict())
    for name, module in chosen.items():
        unit, options = unit_of(module), header["layers"][name]
        present = (True, options["inner_bias"], options["gain"] is not None)
        new = [key for key, there in zip(vector_names(unit, module), present, strict=True) if there]
        expected |= {f"{name}.{key}" if name else key: (output_channels(module),) for key in new}
    if (problem := mismatch(expected, shapes(tensors)) or unloadable(model, tensors)) is not None:
        raise CheckpointError(f"{path} doesn't fit the model: {problem}")


def _compare(path: Path, model: nn.Module, header: Mapping[str, Any], rebuilt: bool) -> None:
    """Raises CheckpointError if ``model`` has the keys of the file's network but another function.

    Libraries change from version to version, so a difference between them in what isn't torch's own only warns.
    """
    found = difference(header.get("structure", {}), structure_of(model))  # older files have none
    if not found:
        return
    now = versions()
    moved = [f"{k} {v}, here {now[k]}" for k, v in header.get("versions", {}).items() if now.get(k, v) != v]
    if not moved or (not rebuilt and any(d.certain for d in found)):
        raise CheckpointError(f"{path} is of another network: in the model, {in_words(found)}; pass its own network")
    warnings.warn(
        f"{path} was written with {few(moved)}; in the model, {in_words(found)}: compare their outputs", stacklevel=4
    )


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | None = None,
) -> nn.Module:
    """Rebuilds the network of a checkpoint, on the CPU and in eval mode, without repeating the surgery.

    Args:
        path: a file from :func:`save`.
        model: the basic network (its weights don't matter), for networks of your own; it is converted in place and
            returned, on its device and in its dtype. Networks from timm and torchvision are made anew.
        optimizers: those built earlier over ``model``, as for :func:`icnets.convert_`.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign, or doesn't fit ``model``: other keys,
            shapes, or another structure (a ReLU in the place of a GELU, another stride).
        TypeError: ``model`` is wrapped (DDP, FSDP), compiled, scripted or traced, and isn't this very IC network.
        RuntimeError: an optimizer that trains ``model`` exists and wasn't passed.

    Whatever is raised, ``model`` and its optimizers are then as they were.

    Example:
        >>> model = load("ic.safetensors")  # made by timm or torchvision
        >>> model = load("ic.safetensors", MyNetwork())
    """
    return load_with_notes(path, model, optimizers=optimizers)[0]


def load_with_notes(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | None = None,
) -> tuple[nn.Module, dict[str, str]]:
    """As :func:`load`; also the strings that were given to :func:`save` as ``metadata``."""
    path = Path(path)
    header, tensors, notes = read(path)
    rebuilt = model is None
    if not (rebuilt or isinstance(model, nn.Module)):
        raise TypeError(f"model is a {type(model).__name__}; load takes the basic network, an nn.Module")
    if model is None:
        model = _build(path, header)
    if (name := on_meta(model)) is not None:
        raise CheckpointError(
            f"{path} can't be loaded: {name} of the model is on meta; call model.to_empty(device='cpu')"
        )
    refuse_sharded(model)
    try:
        chosen = _to_convert(path, model, header["layers"])
        _check(path, model, header, chosen, tensors)
    except CheckpointError:
        refuse_wrapped(model, "load into")  # which would explain it
        raise
    if chosen:
        refuse_wrapped(model, "load into")
    _compare(path, model, header, rebuilt)
    extension = planned(model, chosen, [] if rebuilt else checked(optimizers))
    with Undo() as undo:
        undo.remember_all(model, values=not rebuilt)
        for name, module in chosen.items():
            kind = unit_of(module)
            if kind is not None and not isinstance(module, IC_LAYERS):  # a shared one is converted once
                kind.take_over_(module, **header["layers"][name])
        guard_(model)
        model.load_state_dict(with_versions(tensors, model.state_dict()))
        extension.apply_(ic_parameters, undo)
        model.eval()
    return model, notes
