"""``icnets fit --plan``: what would run, on what, how much disk it takes and what is missing, before any of it begins.

Also what is looked at before training starts: can the run's folder be written, and is there room for its checkpoints?
"""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icnets.convert.surgery import ICConfig
from icnets.data.data_module import ImageData
from icnets.data.epochs import default_batch
from icnets.support.tables import human
from icnets.support.text import one_line
from icnets.training.network import build_network
from icnets.training.optimization import Optimization, scaled_lr, with_lr
from icnets.training.teachers import class_positions, open_teacher
from icnets.unit.layers import ic_parameters

_IMAGENET = (1_281_167, 50_000, 1_000)
_STATES = {"sgd": 1, "adamw": 2, "lamb": 2}  # tensors of a parameter's size that the optimizer keeps


def devices_of(trainer: Any) -> tuple[str, int, int, str, str]:
    """Accelerator, devices a node, nodes, strategy and precision as Lightning would choose them; starts nothing.

    Args:
        trainer: the options of the trainer.
    """
    accelerator, devices, nodes = str(trainer.accelerator), trainer.devices, int(trainer.num_nodes or 1)
    if accelerator == "auto":
        accelerator = "gpu" if torch.accelerator.is_available() else "cpu"
    if isinstance(devices, list | tuple):
        per_node = len(devices)
    elif str(devices).isdigit() and int(devices) > 0:
        per_node = int(devices)
    else:  # auto, -1
        per_node = 1 if accelerator == "cpu" else max(torch.accelerator.device_count(), 1)
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else type(trainer.strategy).__name__
    if strategy == "auto":
        strategy = "ddp" if per_node * nodes > 1 else "one device"
    names = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "None": "32-true"}
    return accelerator, per_node, nodes, strategy, names.get(str(trainer.precision), str(trainer.precision))


def checkpoint_bytes(network: nn.Module, optimizer: str, *, average: bool, keep: int) -> tuple[int, int]:
    """Bytes of one checkpoint to resume from, and of all that a run has at a time.

    That is the best, the last ``keep`` and one that is being written, and the weights alone of the best and the last.

    Args:
        network: in float32.
        optimizer: sgd, adamw or lamb.
        average: whether a running average of the weights is kept.
        keep: number of the last checkpoints.

    Example:
        >>> checkpoint_bytes(nn.Linear(9, 10), "sgd", average=False, keep=2)
        (800, 4000)
    """
    parameters = sum(4 * p.numel() for p in network.parameters())
    weights = parameters + sum(b.numel() * b.element_size() for b in network.buffers())
    one = weights * (1 + average) + parameters * _STATES[optimizer]
    return one, (keep + 2) * one + 2 * weights


def _free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free


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
    free = _free_bytes(folder)
    if free < needed:
        raise ValueError(
            f"{folder} has {_size(free)} of free disk space, but the checkpoints need {_size(needed)}: "
            "free some, or give another --runs"
        )


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def plan(chosen: Any, folder: Path) -> str:
    """What ``icnets fit`` would do with these options, as aligned lines. Nothing is trained, downloaded or written.

    Args:
        chosen: the parsed options of fit.
        folder: of the run.
    """
    model, data, missing = chosen.model, ImageData(**chosen.data), list[str]()
    (train, val, classes), names, note = _IMAGENET, None, "assumed, as ImageNet-1k has them"
    try:
        train, val, classes, names = data.size("train"), data.size("val"), data.num_classes, data.class_names
        note = f"{data.root or 'digits'}"
    except (ValueError, OSError) as error:
        missing.append(f"data: {one_line(error)}")
    sizes: dict[str, Any] = {"num_classes": classes, "in_chans": data.in_chans}
    if model.teacher is not None:
        try:
            teacher = open_teacher(str(model.teacher), classes=model.teacher_classes, weights=False, **sizes)
            if names is not None:
                class_positions(teacher, names, model.teacher_classes)
        except ValueError as error:
            missing.append(f"teacher: {one_line(error)}")
    if model.init_from is not None and not Path(model.init_from).is_file():
        missing.append(f"init_from: there is no checkpoint {model.init_from}")
    images = f"{train:,} to train, {val:,} to validate, {classes:,} classes ({note})"
    lines = [*_lines_of_the_run(chosen, train), ("images", images)]
    if isinstance(model.model, str):
        lines += _lines_of_the_network(chosen, sizes, folder)
    else:
        lines.append(("network", f"{model.model.class_path}: its size is known when it is built"))
    start = f"from {chosen.ckpt_path}" if chosen.ckpt_path else "begins anew"
    lines += [("writes to", str(folder)), ("resumes", start)]
    lines += [("" if i else "missing", text) for i, text in enumerate(missing or ["nothing"])]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _lines_of_the_run(chosen: Any, images: int) -> list[tuple[str, str]]:
    model, trainer, accumulated = chosen.model, chosen.trainer, chosen.trainer.accumulate_grad_batches
    accelerator, per_node, nodes, strategy, precision = devices_of(trainer)
    world = per_node * nodes
    batch = chosen.data.batch_size or default_batch(images, world * accumulated)
    global_batch = batch * world * accumulated
    batches, limit = math.ceil(images / world) // batch, trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = math.ceil(batches / accumulated)
    total = per_epoch * (trainer.max_epochs or 0)
    total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
    trained = model.pretrained or model.init_from is not None or model.teacher is not None
    largest: Any = with_lr(Optimization(model.optimizer, model.lr), fine_tunes=trained).lr
    lr = scaled_lr(largest, lr_batch=model.lr_batch, global_batch=global_batch, scaling=model.lr_scaling)
    meant = "" if model.lr_batch is None else f" ({largest:g} for {model.lr_batch} images, {model.lr_scaling})"
    return [
        ("devices", f"{per_node} × {accelerator} on {nodes} node{'s' * (nodes > 1)}"),
        ("strategy", f"{strategy}, precision {precision}"),
        ("batch", f"{global_batch:,} = {batch} a device × {world} devices × {accumulated} accumulated"),
        ("steps", f"{per_epoch:,} an epoch, {total:,} in {trainer.max_epochs} epochs"),
        ("optimizer", f"{model.optimizer}, lr {lr:.6g}{meant}, {model.schedule}"),
    ]


def _lines_of_the_network(chosen: Any, sizes: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Of the network with random weights: nothing is read or downloaded."""
    model, keeps = chosen.model, chosen.trainer.enable_checkpointing is not False
    ic = None if model.ic is None else ICConfig(**dict(model.ic.items())).without_data()
    network, _ = build_network(model.model, ic=ic, options=model.model_options, **sizes)
    count, new = sum(p.numel() for p in network.parameters()), sum(p.numel() for _, p in ic_parameters(network))
    collisions = f" ({human(new)} of collisions)" if new else ""
    one, kept = checkpoint_bytes(network, model.optimizer, average=chosen.ema is not None, keep=chosen.keep)
    free = _free_bytes(folder)
    room = "" if free >= kept else ": too little"
    disk = f"{_size(one)} each, {_size(kept)} for all that is kept; {_size(free)} of disk are free{room}"
    return [
        ("network", f"{model.model}, {human(count)} parameters{collisions}"),
        ("checkpoints", disk if keeps else "none"),
    ]
