"""The network of a training run: a name or a module, its starting weights, and the conversion."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.checkpoint.weights_files import load_weights
from icnets.convert.config import ICConfig
from icnets.convert.surgery import convert_
from icnets.open_network import make_network, notes_of_start, starting_config
from icnets.support.plain import deepcopy
from icnets.support.text import tell
from icnets.unit.layers import IC_LAYERS


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
        model: a timm name ("resnet18", "ic_resnet18"), code ("my_cnn.py:MyCNN"), or any module.
        num_classes, in_chans: for a name; a module is taken as it is.
        ic: how to convert. None: a name with ``ic_`` is converted by the defaults, anything else stays basic. Those
            defaults include the warm start "gain" where the weights are trained (``pretrained``, ``init_from``).
        pretrained: start from timm's pretrained weights.
        init_from: start from the weights of this checkpoint; see :func:`icnets.checkpoint.weights_files.load_weights`.
        options: more arguments for a name.

    Returns:
        The network in train mode, and a configuration that waits for data ("calibrate", ``max_slowdown``) or None.

    Raises:
        ValueError, TypeError: unknown network, options it doesn't take, or weights that don't fit.
    """
    if isinstance(model, str):
        if ic is None:
            ic = starting_config(model, trained=pretrained or init_from is not None)
        options = {"num_classes": num_classes, "in_chans": in_chans, **(options or {})}
        model = make_network(model, pretrained=pretrained, **options)
    elif pretrained or options:
        raise ValueError("pretrained and model_options go with a network's name, but the model is a module already")
    ic = ICConfig(**ic) if isinstance(ic, Mapping) else ic
    if init_from is not None:
        load_weights(model, init_from)
    if ic is not None and (ic.warm_start == "calibrate" or ic.measures):
        if any(isinstance(m, IC_LAYERS) for m in model.modules()):
            what = f"{init_from or 'the network'} has IC units already, and only basic weights can be calibrated"
            what += " or measured" * ic.measures
            raise ValueError(f"{what}; leave ic.warm_start out, or start from the basic network's")
        return model.train(), ic
    if ic is not None:
        report = convert_(model, ic, optimizers=())
        if report.converted and ic.warm_start == "none" and (pretrained or init_from is not None or was_trained(model)):
            tell("ic.warm_start is none, which changes what the trained network computes; gain keeps its function")
    return model.train(), None


def was_trained(network: nn.Module) -> bool:
    """Whether a network has been trained, as far as its batch norms show it: new ones have means of 0."""
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(m.running_mean is not None and bool(m.running_mean.any()) for m in norms)


def start_statistics(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and deviation of the images that the weights to start from were trained on, where the options don't say any.

    Args:
        model: options of :class:`icnets.training.task.ClassificationTask`; random weights know of no images.
        data: options of a folder of images; digits have their own.

    Raises ValueError for a file that notes nonsense.
    """
    file, given = model.get("init_from"), (data.get("mean"), data.get("std")) != (None, None)
    if given or data.get("root") is None or not (file or model.get("pretrained")):
        return {}
    return notes_of_start(file and Path(file), str(model["model"])).statistics(data.get("in_chans") or 3)


def with_chosen_layers(
    network: nn.Module, ic: ICConfig, data: Any, device: torch.device | None = None, *, channels_last: bool = False
) -> tuple[ICConfig, str]:
    """``ic`` with the layers that fit its ``max_slowdown``, and what was measured, as text.

    Measured is a copy on ``device``, with one image of ``data``; the engine "training" with a batch of them.
    """
    images = next(calibration_batches(data))
    number = data.batch_size if ic.engine == "training" else 1
    x = images[torch.arange(number) % len(images)].to(device)
    copy = deepcopy(network).to(device)
    if channels_last:
        x, copy = x.contiguous(memory_format=torch.channels_last), copy.to(memory_format=torch.channels_last)
    report = convert_(copy, ic.without_data(), optimizers=(), example_input=x)
    return replace(ic, only=report.config.only), str(report.slowdown)


def calibration_batches(data: Any) -> Iterator[Tensor]:
    """What a warm start is calibrated on: images (N, C, H, W) of a data module's first validation batches.

    These are not augmented, and reading them leaves the course of the training alone.
    """
    return (batch[0] for batch in islice(data.val_dataloader(), 4))
