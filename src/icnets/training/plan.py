"""``icnets fit --plan``: what would run, on what, how large it is and where it writes, before any of it begins.

Also what is looked at before training starts: can the run's folder be written, and is there room for its checkpoints?
"""

import copy
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.convert.surgery import ICConfig
from icnets.data.data_module import ImageData
from icnets.data.epochs import default_batch
from icnets.profile.measure import count_macs, count_parameters, memory_for_backward
from icnets.support.hooks import removed_after
from icnets.support.tables import human
from icnets.support.text import one_line
from icnets.training import engine
from icnets.training.network import build_network
from icnets.training.optimization import Optimization, scaled_lr, with_lr
from icnets.training.teachers import class_positions, open_teacher

__all__ = ["Devices", "activation_bytes", "checkpoint_bytes", "free_bytes", "kept_bytes", "plan", "preflight"]

_IMAGENET = {"train": 1_281_167, "val": 50_000, "classes": 1_000}
_STATES = {"sgd": 1, "adamw": 2, "lamb": 2}  # tensors of a parameter's size that the optimizer keeps
_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Devices:
    """On what a training runs, as Lightning would choose it."""

    accelerator: str
    per_node: int
    nodes: int
    strategy: str
    precision: str

    @property
    def world(self) -> int:
        """Devices in all."""
        return self.per_node * self.nodes

    @classmethod
    def of(cls, trainer: Any) -> "Devices":
        """From the options of the trainer; nothing is started."""
        accelerator, devices = str(trainer.accelerator), trainer.devices
        if accelerator == "auto":
            accelerator = "gpu" if torch.accelerator.is_available() else "cpu"
        if isinstance(devices, list | tuple):
            per_node = len(devices)
        elif str(devices).lstrip("-").isdigit() and int(devices) > 0:
            per_node = int(devices)
        else:  # auto, -1
            per_node = 1 if accelerator == "cpu" else max(torch.accelerator.device_count(), 1)
        nodes = int(trainer.num_nodes or 1)
        strategy = trainer.strategy if isinstance(trainer.strategy, str) else type(trainer.strategy).__name__
        if strategy == "auto":
            strategy = "ddp" if per_node * nodes > 1 else "one device"
        names = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "None": "32-true"}
        precision = str(trainer.precision)
        return cls(accelerator, per_node, nodes, strategy, names.get(precision, precision))


@dataclass(frozen=True)
class _Data:
    train: int
    val: int
    classes: int
    note: str
    names: list[str] | None = None


@dataclass(frozen=True)
class _Costs:
    """Numbers of parameters, and bytes; activations are those that backward needs."""

    parameters: int
    collisions: int
    macs: int
    buffers: int
    fixed: int
    per_image: int
    teacher: int


def _data(options: Any, missing: list[str]) -> _Data:
    data = ImageData(**options)
    try:
        sizes = data.size("train"), data.size("val"), data.num_classes
        return _Data(*sizes, f"{data.root or 'digits'}", data.class_names)
    except (ValueError, OSError) as error:
        missing.append(f"data: {one_line(error)}")
    return _Data(_IMAGENET["train"], _IMAGENET["val"], _IMAGENET["classes"], "assumed, as ImageNet-1k has them")


def _network(model: Any, classes: int, in_chans: int) -> nn.Module:
    """The network with random weights: nothing is read or downloaded."""
    ic = None if model.ic is None else ICConfig(**dict(model.ic.items())).without_data()
    options = {"num_classes": classes, "in_chans": in_chans, "options": model.model_options}
    return build_network(model.model, ic=ic, **options)[0]


def _teacher_parameters(model: Any, found: _Data, in_chans: int, own: int, missing: list[str]) -> int:
    if model.teacher is None:
        return 0
    options: dict[str, Any] = {"num_classes": found.classes, "in_chans": in_chans, "classes": model.teacher_classes}
    try:
        teacher = open_teacher(str(model.teacher), weights=False, **options)
        if found.names is not None:
            class_positions(teacher, found.names, model.teacher_classes)
    except ValueError as error:
        missing.append(f"teacher: {one_line(error)}")
        return own  # usually the basic form of the same network
    return sum(p.numel() for p in teacher.network.parameters())


def _costs(model: Any, data: Any, found: _Data, precision: str, missing: list[str]) -> _Costs:
    network = _network(model, found.classes, data.in_chans)
    sample = torch.zeros(3, data.in_chans, data.image_size, data.image_size)
    parameters, macs = count_parameters(network), count_macs(network, sample[:1])
    fixed, per_image = activation_bytes(network, sample, precision=precision, recomputed=model.activation_checkpointing)
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    basic = parameters.total - parameters.ic
    teacher = _teacher_parameters(model, found, data.in_chans, basic, missing)
    return _Costs(parameters.total, parameters.ic, macs.total, buffers, fixed, per_image, teacher)


def activation_bytes(network: nn.Module, sample: Tensor, *, precision: str, recomputed: bool) -> tuple[int, int]:
    """Bytes that a forward pass in train mode leaves for backward: fixed ones, and those of each image.

    Measured on two and on three images: weights in half precision are kept once, whatever the batch, and one image
    alone has no statistics where a layer is down to a single place. In mixed precision, which many CPUs compute
    slowly, tensors without contents do. With ``recomputed``, blocks leave their inputs alone; the network is changed.

    Args:
        network: on the CPU.
        sample: images ``(3, C, H, W)``.
        precision: 32-true, 16-mixed or bf16-mixed.
        recomputed: with activation checkpointing.
    """
    if recomputed:
        engine.recompute_activations_(network)
    measure = partial(_kept_under_autocast, dtype=_HALF[precision]) if precision in _HALF else memory_for_backward
    with _inputs_of_blocks(network if recomputed else None) as inputs:
        counts = []
        for x in (sample[:2], sample):
            inputs.clear()
            counts.append(measure(network, x) + sum(inputs))
    two, three = counts
    return max(3 * two - 2 * three, 0), three - two


@contextmanager
def _inputs_of_blocks(network: nn.Module | None) -> Iterator[list[int]]:
    """Bytes of what goes into blocks, which keep it where they are recomputed."""
    inputs: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        inputs.append(x.numel() * x.element_size())

    blocks = engine.blocks(network) if network else []
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    with removed_after(handles):
        yield inputs


def _kept_under_autocast(network: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """As :func:`icnets.profile.measure.memory_for_backward`, under autocast."""
    with torch.autocast("cpu", dtype=dtype):
        return memory_for_backward(network, x)


def _steps(trainer: Any, images: int, batch: int, world: int) -> tuple[int, int]:
    """Optimizer steps in an epoch, and in the whole training."""
    batches = math.ceil(images / world) // batch
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    total = per_epoch * (trainer.max_epochs or 0)
    return per_epoch, min(total, trainer.max_steps) if trainer.max_steps > 0 else total


def checkpoint_bytes(parameters: int, buffers: int, optimizer: str, average: bool, keep: int) -> tuple[int, int]:
    """Bytes of one checkpoint to resume from, and of all that a run has at a time.

    That is the best, the last ``keep`` and one that is being written, and the weights alone of the best and the last.
    """
    weights = 4 * parameters + buffers
    one = weights * (1 + average) + 4 * parameters * _STATES[optimizer]
    return one, (keep + 2) * one + 2 * weights


def kept_bytes(task: Any, *, average: bool, keep: int) -> int:
    """Bytes of all checkpoints that the training of a ``ClassificationTask`` keeps."""
    buffers = sum(b.numel() * b.element_size() for b in task.network.buffers())
    parameters = sum(p.numel() for p in task.network.parameters())
    return checkpoint_bytes(parameters, buffers, task.optimization.optimizer, average, keep)[1]


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def preflight(folder: Path, needed: int) -> None:
    """Before training: can the folder be written, and do the checkpoints fit?

    Args:
        folder: of the run; it is made.
        needed: bytes of all checkpoints that are kept; 0 where none are.

    Raises:
        ValueError: it can't, or they don't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"can't write to the run's folder {folder} ({error.strerror}); give another --runs") from error
    free = free_bytes(folder)
    if free < needed:
        raise ValueError(
            f"{folder} has {_size(free)} of free disk space, but the checkpoints need {_size(needed)}: "
            "free some, or give another --runs"
        )


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _memory(chosen: Any, costs: _Costs, devices: Devices) -> list[tuple[str, int]]:
    """What one device holds, by its parts, in bytes."""
    shards = devices.world if devices.strategy == "fsdp2" else 1
    size = {"16-true": 2, "bf16-true": 2, "64-true": 8}.get(devices.precision, 4)
    parameters = size * costs.parameters // shards
    average = 4 * costs.parameters + costs.buffers if chosen.ema is not None else 0
    activations = costs.fixed + costs.per_image * chosen.data.batch_size
    images = 4 * chosen.data.batch_size * _images(chosen.data).numel()
    return [
        ("weights", parameters + costs.buffers),
        ("gradients", parameters),
        (chosen.model.optimizer, parameters * _STATES[chosen.model.optimizer]),
        ("average", average),
        ("teacher", size * costs.teacher // shards),
        ("images", images),
        ("activations", activations),
    ]


def _images(options: Any) -> Tensor:
    data = ImageData(**options)
    return torch.empty(data.in_chans, data.image_size, data.image_size, device="meta")


def plan(chosen: Any, folder: Path) -> str:
    """What ``icnets fit`` would do with these options, as aligned lines. Nothing is trained, downloaded or written.

    Args:
        chosen: the parsed options of fit.
        folder: of the run.
    """
    missing: list[str] = []
    devices, found = Devices.of(chosen.trainer), _data(chosen.data, missing)
    chosen = _with_defaults(chosen, devices, found.train)
    lines = _lines_of_the_run(chosen, devices, found)
    if isinstance(chosen.model.model, str):
        costs = _costs(chosen.model, ImageData(**chosen.data), found, devices.precision, missing)
        lines += _lines_of_the_network(chosen, devices, costs, folder)
    else:
        lines.append(("network", f"{chosen.model.model.class_path}: its size is known when it is built"))
    source = chosen.model.init_from
    if source is not None and not Path(source).is_file():
        missing.append(f"init_from: there is no checkpoint {source}")
    start = f"from {chosen.ckpt_path}" if chosen.ckpt_path else "begins anew"
    lines += [("writes to", str(folder)), ("resumes", start)]
    lines += [("missing" if i == 0 else "", text) for i, text in enumerate(missing)] or [("missing", "nothing")]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _with_defaults(chosen: Any, devices: Devices, images: int) -> Any:
    """The options with the batch and the learning rate that fit chooses where none is given."""
    chosen = copy.deepcopy(chosen)
    data, model, batches = chosen.data, chosen.model, devices.world * chosen.trainer.accumulate_grad_batches
    data.batch_size = data.batch_size or default_batch(images, batches)
    names = ("optimizer", "lr", "lr_batch", "lr_scaling")
    options = Optimization(**{name: getattr(model, name) for name in names})
    trained = model.pretrained or model.init_from is not None or model.teacher is not None
    model.lr = with_lr(options, fine_tunes=trained).lr
    return chosen


def _lines_of_the_run(chosen: Any, devices: Devices, found: _Data) -> list[tuple[str, str]]:
    trainer, batch = chosen.trainer, chosen.data.batch_size
    accumulated = trainer.accumulate_grad_batches
    global_batch = batch * devices.world * accumulated
    per_epoch, total = _steps(trainer, found.train, batch, devices.world)
    model = chosen.model
    lr = scaled_lr(model.lr, lr_batch=model.lr_batch, global_batch=global_batch, scaling=model.lr_scaling)
    meant = "" if model.lr_batch is None else f" ({model.lr:g} for {model.lr_batch} images, {model.lr_scaling})"
    nodes = f"{devices.nodes} node{'s' * (devices.nodes > 1)}"
    lines = [
        ("devices", f"{devices.per_node} × {devices.accelerator} on {nodes}"),
        ("strategy", f"{devices.strategy}, precision {devices.precision}"),
        ("images", f"{found.train:,} to train, {found.val:,} to validate, {found.classes:,} classes ({found.note})"),
        ("batch", f"{global_batch:,} = {batch} a device × {devices.world} devices × {accumulated} accumulated"),
        ("steps", f"{per_epoch:,} an epoch, {total:,} in {trainer.max_epochs} epochs"),
        ("optimizer", f"{model.optimizer}, lr {lr:.6g}{meant}, {model.schedule}"),
    ]
    world = os.environ.get("WORLD_SIZE")
    if world is not None and int(world) != devices.world:
        lines.append(("attention", f"the launcher started {world} processes; devices × nodes are {devices.world}"))
    return lines


def _lines_of_the_network(chosen: Any, devices: Devices, costs: _Costs, folder: Path) -> list[tuple[str, str]]:
    parts = [(name, size) for name, size in _memory(chosen, costs, devices) if size]
    one, kept = checkpoint_bytes(
        costs.parameters, costs.buffers, chosen.model.optimizer, chosen.ema is not None, chosen.keep
    )
    if chosen.trainer.enable_checkpointing is False:
        one = kept = 0
    free = free_bytes(folder)
    collisions = f" ({human(costs.collisions)} of collisions)" if costs.collisions else ""
    room = "" if free >= kept else ": too little"
    return [
        (
            "network",
            f"{chosen.model.model}, {human(costs.parameters)} parameters{collisions}, {human(costs.macs)} MACs",
        ),
        ("memory", f"{_size(sum(size for _, size in parts))} a device, estimated, without the libraries' own"),
        ("", ", ".join(f"{name} {_size(size)}" for name, size in parts)),
        ("checkpoints", f"{_size(one)} each, {_size(kept)} for all that is kept; {_size(free)} of disk are free{room}"),
    ]
