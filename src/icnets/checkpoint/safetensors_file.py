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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from icnets.checkpoint.architectures import FACTORIES, confirmed, make, remember_architecture
from icnets.checkpoint.foreign import foreign
from icnets.convert import state_dicts
from icnets.convert.optimizers import checked, extend_
from icnets.convert.structure import difference, structure_of, unwrapped, versions
from icnets.convert.surgery import obstacle
from icnets.deploy.batch_norm import FoldedNormAct
from icnets.support.files import atomic_write
from icnets.support.text import few, first_line
from icnets.support.undo import remember_all
from icnets.support.wrapped import refuse_wrapped
from icnets.unit.deployed import FUSED_LAYERS
from icnets.unit.guards import guard_
from icnets.unit.layers import IC_LAYERS, ICLayer, unit_of

VERSION = 1
File = str | os.PathLike[str]
Optimizers = Iterable[torch.optim.Optimizer] | None


class CheckpointError(ValueError):
    """A file that ``load`` can't use, with the reason and the remedy in one line."""


class UnknownNetworkError(CheckpointError):
    """A file that doesn't say how to make its network."""


def _describe(layer: ICLayer) -> dict[str, Any]:
    return {
        "scale": layer.collision_scale,
        "inner_bias": layer.vectors()[1] is not None,
        "gain": layer.initial_gain,
        "collision_weight": layer.initial_collision_weight,
    }


def _tensors(model: nn.Module, state: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """What to write: of ``model``, or ``state`` if that fits it. Raises TypeError, ValueError if it can't be loaded."""
    own = {state_dicts.plain_name(key): value for key, value in model.state_dict().items()}
    found = own if state is None else state_dicts.without_wrapper(state, own)
    if state is not None and (problem := state_dicts.mismatch(state_dicts.shapes(own), state_dicts.shapes(found))):
        raise ValueError(f"state doesn't fit the model: {problem}; pass a whole state dict of this model")
    tensors: dict[str, Tensor] = {}
    stores: set[int] = set()
    for key, value in found.items():
        value = state_dicts.plain_tensor(key, value)
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
    path: File,
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
        state: what to write instead of the model's own state dict, such as an average or gathered shards; the
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
        >>> import tempfile
        >>> from icnets import convert_
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> report = convert_(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/ic.safetensors", metadata={"mean": "0.5"})
        ...     again = load(f"{folder}/ic.safetensors", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        >>> type(again[0]).__name__
        'ICConv2d'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: the folder {path.parent} doesn't exist; create it first")
    tensors, strings, _ = prepare(model, architecture, metadata, state)
    write(path, tensors, strings)


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
    """Returns the tensors and strings of a checkpoint, and the call that makes its network. Raises as ``save``."""
    model = unwrapped(model)
    _refuse_unloadable(model)
    tensors = _tensors(model, state)
    claim, changed = confirmed(model, architecture)
    modules = model.named_modules(remove_duplicate=False)  # a shared unit has each of its names, as its keys are
    layers = {state_dicts.plain_name(name): _describe(m) for name, m in modules if isinstance(m, IC_LAYERS)}
    header: dict[str, Any] = {
        "version": VERSION,
        "architecture": claim,
        "layers": layers,
        "structure": structure_of(model),
        "versions": versions(),
        **({"changed": changed} if changed else {}),
    }
    header = json.loads(json.dumps(header))  # as it will be read: keys are strings
    header["checksum"] = _checksum(header, metadata or {}, tensors)
    return tensors, {"format": "pt", **(metadata or {}), "icnets": json.dumps(header, sort_keys=True)}, claim


def _refuse_unloadable(model: Any) -> None:
    """Raises TypeError for a network that ``load`` can't rebuild."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; save takes the network, and weights as state=")
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError("the model is inside FSDP; gather the weights, and save the network without it with state=")
        if isinstance(module, (*FUSED_LAYERS, FoldedNormAct)):
            raise TypeError("the model is deployed (fuse_), which load can't rebuild; save it before, or export it")
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("the model is scripted; save the nn.Module that it was made from")
        if isinstance(module, IC_LAYERS) and not module._parameters.keys() >= set(module.vector_names):
            raise TypeError(f"the collision of {name!r} is pruned or parametrised: make it permanent, then save")


def read(path: File) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Reads header, tensors and other metadata of a checkpoint. Raises CheckpointError for any other file."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}; check the path")
    again = "write it again with icnets.save"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # of safetensors, or of the file system
        what = foreign(path) or f"is not a whole safetensors file ({first_line(error)}); {again}"
        raise CheckpointError(f"{path} {what}") from None
    if "icnets" not in metadata:
        raise CheckpointError(f"{path} was not written by icnets.save; basic weights go in by load_basic_state_dict")
    try:
        header = dict(json.loads(metadata.pop("icnets")))
        version = header["version"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path} has a damaged icnets header; {again}") from None
    if version != VERSION:
        raise CheckpointError(f"{path} has format version {version}, this icnets reads {VERSION}: upgrade icnets")
    metadata.pop("format", None)
    checksum = header.pop("checksum", None)  # older files have none
    if checksum not in (None, _checksum(header, metadata, tensors)):
        raise CheckpointError(f"{path} is damaged: its checksum differs; {again}")
    return header, tensors, metadata


def _build(header: Mapping[str, Any]) -> nn.Module:
    call = header["architecture"]
    if call is None:
        why = f": {header['changed']}" if "changed" in header else ""
        raise UnknownNetworkError(f"doesn't say how to make its network{why}; pass the basic one, load(path, model)")
    factory, args = call["factory"], call["args"]
    if factory not in FACTORIES:
        raise CheckpointError(f"names the factory {factory!r}; only {', '.join(FACTORIES)} are called")
    try:
        model = make(factory, args)
    except Exception as error:  # of the library, or because it is missing
        why = f"{first_line(error)}; is the library installed, in the version of then?"
        raise CheckpointError(f"asks {factory} for {args}, which fails: {why}") from error
    remember_architecture(model, factory, args)
    return model


def _convert_as(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Makes IC units of the layers of ``model`` that are units in the file, and returns those that weren't yet.

    Raises:
        CheckpointError: a layer is missing, or can't become what it is in the file.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[str, nn.Module] = {}
    for name, options in layers.items():
        module = modules.get(name)
        where = f"has an IC unit at {name!r}"
        if module is None or unit_of(module) is None:
            raise CheckpointError(f"{where}, where the model has a {type(module).__name__}; pass its own network")
        if not isinstance(module, IC_LAYERS):
            if (reason := obstacle(module)) is not None:
                raise CheckpointError(f"{where}, which can't become one: {reason}; pass its own network")
            chosen[name] = module
        elif _describe(module) != options:
            raise CheckpointError(f"has {options} at {name!r}, the model {_describe(module)}; pass a basic network")
    if chosen:
        refuse_wrapped(model, "load into")
    for name, module in chosen.items():
        if not isinstance(module, IC_LAYERS):  # a shared one is converted once
            unit: Any = unit_of(module)
            unit.take_over_(module, **layers[name])
    return chosen


def _compare(model: nn.Module, header: Mapping[str, Any], rebuilt: bool) -> str | None:
    """Raises CheckpointError if ``model`` has the keys of the file's network but another function.

    Libraries change from version to version, so a difference between them in what isn't torch's own is only returned.
    """
    found = difference(header.get("structure", {}), structure_of(model))  # older files have none
    if not found:
        return None
    now, what = versions(), f"in the model, {few(list(found))}"
    moved = [f"{k} {v}, here {now[k]}" for k, v in header.get("versions", {}).items() if now.get(k, v) != v]
    if moved and (rebuilt or not any(found.values())):
        return f"was written with {few(moved)}; {what}: compare their outputs"
    raise CheckpointError(f"is of another network: {what}; pass its own network")


def load(path: File, model: nn.Module | None = None, *, optimizers: Optimizers = None) -> nn.Module:
    """Rebuilds the network of a checkpoint, on the CPU and in eval mode, without repeating the surgery.

    Args:
        path: a file from :func:`save`.
        model: the basic network (its weights don't matter), for networks of your own; it is converted in place and
            returned, on its device and in its dtype. Networks from timm and torchvision are made anew.
        optimizers: those built earlier over ``model``, as for :func:`icnets.convert_`.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign, or doesn't fit ``model``: other keys,
            shapes, or another structure (a ReLU instead of a GELU, another stride).
        TypeError: ``model`` is wrapped (DDP, FSDP), compiled, scripted or traced, and isn't this very IC network.
        RuntimeError: an optimizer that trains ``model`` exists and wasn't passed.

    Whatever is raised, ``model`` and its optimizers are then as they were.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Linear(2, 3), f"{folder}/basic.safetensors")
        ...     load(f"{folder}/basic.safetensors", nn.Linear(2, 3))  # of a timm network, load(path) is enough
        Linear(in_features=2, out_features=3, bias=True)
    """
    return load_with_notes(path, model, optimizers=optimizers)[0]


def load_with_notes(
    path: File, model: nn.Module | None = None, *, optimizers: Optimizers = None
) -> tuple[nn.Module, dict[str, str]]:
    """Rebuilds as :func:`load`, and returns also the strings that were given to :func:`save` as ``metadata``."""
    header, tensors, notes = read(path)
    rebuilt = model is None
    if not (rebuilt or isinstance(model, nn.Module)):
        raise TypeError(f"model is a {type(model).__name__}; load takes the basic network, an nn.Module")
    try:
        model = _build(header) if model is None else model
        state_dicts.refuse_without_values(model, CheckpointError)
        with ExitStack() as undo:
            remember_all(undo, model, values=not rebuilt)
            chosen = _convert_as(model, header["layers"])
            own = model.state_dict()  # with the versions of its modules: some refuse a state dict that has none
            problem = state_dicts.mismatch(state_dicts.shapes(own), state_dicts.shapes(tensors))
            if problem := problem or state_dicts.unloadable(model, tensors):
                raise CheckpointError(f"doesn't fit the model: {problem}")
            if warning := _compare(model, header, rebuilt):
                warnings.warn(f"{path} {warning}", stacklevel=3)
            guard_(model)
            own.update(tensors)
            model.load_state_dict(own)
            extend_(model, chosen, [] if rebuilt else checked(optimizers), undo)
            model.eval()
            undo.pop_all()
    except CheckpointError as error:
        if model is not None:
            refuse_wrapped(model, "load into")  # a wrapper would explain it
        raise type(error)(f"{path} {error}") from error.__cause__
    return model, notes
