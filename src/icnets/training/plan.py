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

from icnets.convert.config import ICConfig
from icnets.data.data_module import ImageData
from icnets.data.epochs import default_batch
from icnets.support.tables import human
from icnets.support.text import one_line
from icnets.training.network import build_network
from icnets.training.optimization import Optimization, scaled_lr, with_lr
from icnets.unit.layers import ic_parameters

_STATES = {"sgd": 1, "adamw": 2, "lamb": 2}  # tensors of a parameter's size that the optimizer keeps


def devices_of(trainer: Any) -> tuple[str, int, int]:
    """Accelerator, devices a node and nodes as Lightning would choose them; starts nothing.

    Args:
        trainer: the options of the trainer.
    """
    accelerator, devices = str(trainer.accelerator), trainer.devices
    if accelerator == "auto":
        accelerator = "gpu" if torch.accelerator.is_available() else "cpu"
    per_node = len(devices) if isinstance(devices, list | tuple) else 0
    if str(devices).isdigit():
        per_node = int(devices)
    if not per_node:  # auto, -1
        per_node = 1 if accelerator == "cpu" else max(torch.accelerator.device_count(), 1)
    return accelerator, per_node, int(trainer.num_nodes or 1)


def checkpoint_bytes(network: nn.Module, optimizer: str, *, average: bool, keep: int) -> tuple[int, int]:
    """Bytes of one checkpoint to resume from, and of all that a run has at a time.

    That is the last ``keep`` and one that is being written, and the best weights, beside which better ones are written.

    Args:
        network: in float32.
        optimizer: sgd, adamw or lamb.
        average: whether a running average of the weights is kept.
        keep: number of the last checkpoints.

    Example:
        >>> checkpoint_bytes(nn.Linear(9, 10), "sgd", average=False, keep=1)
        (800, 2400)
    """
    parameters = sum(4 * p.numel() for p in network.parameters())
    weights = parameters + sum(b.numel() * b.element_size() for b in network.buffers())
    one = weights * (1 + average) + parameters * _STATES[optimizer]
    return one, (keep + 1) * one + 2 * weights


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
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"{folder} has {_size(free)} of free disk space, but the checkpoints need {_size(needed)}"
        raise ValueError(f"{what}: free some, or give another --runs")


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def plan(chosen: Any, folder: Path) -> str:
    """What ``icnets fit`` would do with these options, as aligned lines. Nothing is trained, downloaded or written.

    Args:
        chosen: the parsed options of fit.
        folder: of the run.
    """
    data, missing = ImageData(**chosen.data), list[str]()
    (train, val, test), classes, note = (1_281_167, 50_000, 50_000), 1_000, "assumed, as ImageNet-1k has them"
    try:
        train, val, test = (data.size(split) for split in ("train", "val", "test"))
        classes, note = data.num_classes, f"{data.root or 'digits'}"
    except (ValueError, OSError) as error:
        missing.append(f"data: {one_line(error)}")
    for option in ("teacher", "init_from"):
        source = chosen.model[option]
        if source is not None and not str(source).startswith("timm:") and not Path(source).exists():
            missing.append(f"{option}: there is no checkpoint {source}")
    lines = {
        **_lines_of_the_run(chosen, train),
        "images": f"{train:,} to train, {val:,} to validate, {test:,} to test, {classes:,} classes ({note})",
        "network": _network(chosen, classes, data.in_chans),
        "writes to": str(folder),
        "missing": f"\n{'':<11}".join(missing or ["nothing"]),
    }
    return "\n".join(f"{name:<9}  {text}" for name, text in lines.items())


def _lines_of_the_run(chosen: Any, images: int) -> dict[str, str]:
    model, trainer, accumulated = chosen.model, chosen.trainer, chosen.trainer.accumulate_grad_batches
    accelerator, per_node, nodes = devices_of(trainer)
    world = per_node * nodes
    batch = min(chosen.data.batch_size or default_batch(images, world * accumulated), max(images // world, 1))
    global_batch = batch * world * accumulated
    per_epoch = math.ceil(math.ceil(images / world) // batch / accumulated)
    total = per_epoch * (trainer.max_epochs or 0)
    total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
    trained = model.pretrained or model.init_from is not None or model.teacher is not None
    largest: Any = with_lr(Optimization(model.optimizer, model.lr), fine_tunes=trained).lr
    lr = scaled_lr(largest, lr_batch=model.lr_batch, global_batch=global_batch, scaling=model.lr_scaling)
    return {
        "devices": f"{per_node} × {accelerator} on {nodes} node{'s' * (nodes > 1)}",
        "batch": f"{global_batch:,} = {batch} a device × {world} devices × {accumulated} accumulated",
        "steps": f"{per_epoch:,} an epoch, {total:,} in {trainer.max_epochs} epochs",
        "optimizer": f"{model.optimizer}, lr {lr:.6g}, {model.schedule}",
    }


def _network(chosen: Any, classes: int, in_chans: int) -> str:
    """The size of the network, which is made with random weights: nothing is read or downloaded."""
    model = chosen.model
    if not isinstance(model.model, str):
        return f"{model.model.class_path}: its size is known when it is built"
    ic = None if model.ic is None else ICConfig(**dict(model.ic.items())).without_data()
    sizes: dict[str, Any] = {"num_classes": classes, "in_chans": in_chans}
    network, waiting = build_network(model.model, ic=ic, options=model.model_options, **sizes)
    count, new = sum(p.numel() for p in network.parameters()), sum(p.numel() for _, p in ic_parameters(network))
    _, disk = checkpoint_bytes(network, model.optimizer, average=chosen.ema is not None, keep=chosen.keep)
    collisions = f" ({human(new)} of collisions)" if new else ""
    collisions = " without collisions, of which it measures how many fit" if waiting is not None else collisions
    return f"{model.model}, {human(count)} parameters{collisions}, {_size(disk)} of checkpoints"
