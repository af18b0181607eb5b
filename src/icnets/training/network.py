"""The network of a training run: a name or a module, its starting weights, the conversion; and its parameter groups."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from icnets import checkpoint
from icnets.convert import ICConfig, convert_, load_basic_state_dict
from icnets.layers import IC_LAYERS, ic_parameters
from icnets.timm_models import NETWORKS, create_model

__all__ = ["build_network", "learning_rate_factor", "load_weights", "make_optimizer", "parameter_groups"]

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["one-cycle", "cosine", "step"]

_CALIBRATION_BATCHES = 4


def build_network(
    model: str | nn.Module,
    *,
    num_classes: int,
    in_chans: int,
    ic: ICConfig | None,
    pretrained: bool = False,
    init_from: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ICConfig | None]:
    """The network to train.

    Args:
        model: a timm name, with or without ``ic_`` ("resnet18", "ic_resnet18"), or any module.
        num_classes, in_chans: for a name; a module is taken as it is.
        ic: how to convert. None: a name with ``ic_`` is converted by the defaults, anything else stays basic. Those
            defaults include the warm start "gain" where the weights are trained (``pretrained``, ``init_from``).
        pretrained: start from timm's pretrained weights.
        init_from: start from the weights of this checkpoint; see :func:`load_weights`.
        options: more of timm's arguments for a name.

    Returns:
        The network in train mode, and a configuration that still waits for data ("calibrate") or None.

    Raises:
        ValueError, TypeError: unknown network, options it doesn't take, or weights that don't fit.
    """
    if isinstance(model, str):
        if ic is None:
            ic = starting_config(model, trained=pretrained or init_from is not None)
        args: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **(options or {})}
        network = create_model(model, pretrained=pretrained, ic=None, **args)
    else:
        if pretrained or options:
            raise ValueError("pretrained and model_options go with a network's name, but the model is a module already")
        network = model
    if init_from is not None:
        load_weights(network, init_from)
    if ic is not None and ic.warm_start == "calibrate" and not any(isinstance(m, IC_LAYERS) for m in network.modules()):
        return network.train(), ic
    if ic is not None:
        convert_(network, ic, optimizers=())
    return network.train(), None


def starting_config(name: str, *, trained: bool) -> ICConfig | None:
    """How a named network is converted where nothing is said: those with ``ic_``, from trained weights by "gain"."""
    if name.split(".")[0] not in NETWORKS:
        return None
    return ICConfig(warm_start="gain" if trained else "none")


def calibrate(network: nn.Module, config: ICConfig, batches: Iterable[Any] | None) -> None:
    """The conversion that waited for data; without any (weights follow from a checkpoint), only the surgery."""
    if batches is None:
        convert_(network, replace(config, warm_start="none"), optimizers=())
    else:
        convert_(network, config, optimizers=(), calibration_data=batches)


def calibration_batches(data: Any) -> Iterator[Tensor]:
    """What a warm start is calibrated on: images (N, C, H, W) of a data module's first validation batches.

    These are not augmented, and reading them leaves the course of the training alone.
    """
    for batch in islice(data.val_dataloader(), _CALIBRATION_BATCHES):
        yield batch[0]


def load_weights(network: nn.Module, path: Path) -> None:
    """Load trained weights into a basic network, in place.

    Args:
        network: the basic network; it becomes an IC network if the checkpoint holds one.
        path: what ``icnets.save`` wrote, or a plain state dict of the basic network (.pth, .pt, .safetensors).

    Raises:
        ValueError: the file is missing, damaged, or doesn't fit the network.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors" and written_by_icnets(path):
        checkpoint.load(path, network)
        return
    state = read_state_dict(path)
    try:
        load_basic_state_dict(network, state)
    except ValueError as error:
        raise ValueError(f"{path} doesn't fit the network: {error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a .pth, .pt, .ckpt or .safetensors file, on the CPU; of ours, and of timm's and others' trainers.

    Raises:
        ValueError: the file is missing or damaged, or holds more than plain data.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check the path")
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no file of weights ({type(error).__name__})") from error
    prefix = "network."  # of the networks in our own Lightning checkpoints
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def holds_ic_network(path: Path) -> bool:
    """Whether a file is a checkpoint of ours that has IC units; False if it is missing."""
    if not path.is_file() or path.suffix != ".safetensors" or not written_by_icnets(path):
        return False
    return bool(checkpoint.read(path)[0]["layers"])


def written_by_icnets(path: Path) -> bool:
    """Whether a safetensors file has our header; False for one too damaged to say."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 100_000_000)))
            return "icnets" in header.get("__metadata__", {})
        except (ValueError, AttributeError):
            return False


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights, with decay, and without it biases, norms and IC's own parameters.

    Decay would pull w', b1 and the gain towards the basic network, and a norm's scale has no use for it.
    """
    new = {id(p) for _, p in ic_parameters(network)}
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in new]
    kept = {id(p) for p in decayed}
    rest = [p for p in trained if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, *, total: int, schedule: ScheduleName, warmup: float) -> float:
    """The learning rate at ``step`` of ``total``, as a fraction of the largest, in [0, 1].

    It rises linearly over the first ``warmup`` of the training, then: "one-cycle" falls linearly to 0, "cosine" falls
    to 0 in half a cosine, "step" falls to a tenth at 1/2 and to a hundredth at 3/4 of the training.
    """
    progress = min((step + 0.5) / max(total, 1), 1.0)  # the middle of the step: neither its first nor its last is lost
    if progress < warmup:
        return progress / warmup
    if schedule == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    rest = (1 - progress) / (1 - warmup)
    return rest if schedule == "one-cycle" else 0.5 * (1 - math.cos(math.pi * rest))


def make_optimizer(
    network: nn.Module,
    *,
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    momentum: float,
    schedule: ScheduleName,
    warmup: float,
    total: int,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """SGD with Nesterov momentum or AdamW over :func:`parameter_groups`, and its schedule by steps."""
    groups = parameter_groups(network, weight_decay)
    if not groups:
        raise ValueError("the network has no parameters to train: all have requires_grad=False")
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr)
    factor = partial(learning_rate_factor, total=total, schedule=schedule, warmup=warmup)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def check_optimization(
    optimizer: str, lr: float, weight_decay: float, momentum: float, schedule: str, warmup: float
) -> None:
    """Raises ValueError for an argument of :func:`make_optimizer` out of its range."""
    for name, value, choices in (
        ("optimizer", optimizer, get_args(OptimizerName)),
        ("schedule", schedule, get_args(ScheduleName)),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}; it must be positive")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
    for name, number in (("momentum", momentum), ("warmup", warmup)):
        if not 0 <= number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 0 and less than 1")
