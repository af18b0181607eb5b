"""From what MODEL names to something that classifies: a checkpoint, a named network, or an exported artefact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg
from icnets.support.text import first_line
from icnets.training.rebuild import notes_of_file, read_model

__all__ = ["Model", "classes_of", "open_model", "require_device"]


@dataclass(frozen=True)
class Model:
    """``logits``: images (N, C, H, W), float32 on the CPU, to logits (N, classes) likewise.

    ``network``: what computes them, where that is PyTorch in this process; it is in eval mode and on its device.
    ``fixed``: the format of an artefact, whose image size can't be chosen.
    """

    name: str
    logits: Callable[[Tensor], Tensor]
    notes: ImageNotes
    network: nn.Module | None = None
    fixed: str | None = None


def open_model(name: str, *, pretrained: bool = False, device: str = "cpu") -> Model:
    """The model that ``name`` stands for.

    Args:
        name: file of ``icnets.save`` (.safetensors), folder of ``save_pretrained``, checkpoint of ``icnets fit``
            (.ckpt), artefact of ``icnets export`` (.onnx, .xml, .pt2); or timm's name, with or without ic_.
        pretrained: with a network's name, which has trained weights no other way.
        device: cpu or cuda, of networks in PyTorch; artefacts run on the CPU.

    Raises:
        ValueError: a file that is missing, damaged or something else, a name without weights, or a device that isn't
            there.
    """
    from icnets.deploy.export.engines import SUFFIXES, open_artefact

    path = Path(name)
    require_device(device)
    if not (
        path.is_file() or (path / "model.safetensors").is_file() or path.suffix in (*SUFFIXES, ".safetensors", ".ckpt")
    ):
        return _of_network(name, *_named(name, pretrained), device)
    if pretrained:
        raise ValueError(f"--pretrained goes with a network's name, but {name} is a file")
    if path.suffix not in SUFFIXES:
        return _of_network(name, *read_model(path), device)
    if device != "cpu":
        raise ValueError(f"--device is {device!r}, but {name} is an artefact, which runs on the CPU; leave it out")
    format, runner, notes = open_artefact(path)
    return Model(name, lambda x: _one_output(name, runner(x)).float(), notes_of_file(path, notes), fixed=format)


def require_device(device: str) -> None:
    """Raises ValueError for a device other than the CPU and CUDA's, or one that torch doesn't find here."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device is {device!r}; it must be cpu or cuda")
    if kind == "cuda" and not int(index or 0) < torch.cuda.device_count():
        raise ValueError(f"--device is {device!r}, but torch finds no such CUDA device here; use --device cpu")


def _named(name: str, pretrained: bool) -> tuple[nn.Module, ImageNotes]:
    """timm's pretrained network, or its IC network of the same function."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    from timm.models import get_pretrained_cfg, is_model

    from icnets.timm_models import NETWORKS, create_model

    basic, _, tag = name.partition(".")
    if not is_model(basic):
        raise ValueError(f"there is no file {name}, and timm has no network of that name; check MODEL")
    if not pretrained:
        raise ValueError(f"{name} has random weights; give --pretrained, or a checkpoint")
    try:
        cfg = get_pretrained_cfg(".".join([NETWORKS.get(basic, basic), *([tag] if tag else [])]))
    except RuntimeError:  # an unknown tag
        cfg = None
    if cfg is None or not cfg.has_weights:
        raise ValueError(f"timm has no pretrained weights of {name}; see timm.list_pretrained()")
    ic: dict[str, Any] = {} if basic in NETWORKS else {"ic": None}
    try:
        network = create_model(name, pretrained=True, **ic)
    except Exception as error:  # whatever happens on the way to the hub
        raise ValueError(f"can't get timm's pretrained weights of {name}: {first_line(error)}") from error
    subset = infer_imagenet_subset(network)
    info = ImageNetInfo(subset) if subset else None
    names = None if info is None else [info.index_to_description(i) for i in range(cfg.num_classes)]
    return network, replace(notes_of_cfg(cfg.to_dict()), class_names=names)


def _of_network(name: str, network: nn.Module, notes: ImageNotes, device: str) -> Model:
    network = network.eval().requires_grad_(False).to(device)

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            output: Any = network(x.to(device))
        return _one_output(name, [output] if isinstance(output, Tensor) else output).float().cpu()

    return Model(name, logits, notes, network)


def _one_output(name: str, outputs: Any) -> Tensor:
    if not isinstance(outputs, list) or len(outputs) != 1:
        found = f"{len(outputs)} outputs" if isinstance(outputs, list | tuple) else f"a {type(outputs).__name__}"
        raise ValueError(f"{name} gives {found}; predict needs one, logits (N, classes)")
    output: Tensor = outputs[0]
    return output


def classes_of(model: Model, in_chans: int, image_size: int) -> int:
    """The number of classes, found by a trial.

    Raises:
        ValueError: the model can't take such images, or its output isn't one row of logits per image.
    """
    try:
        logits = model.logits(torch.zeros(2, in_chans, image_size, image_size))
    except ValueError:
        raise
    except Exception as error:  # engines have errors of their own
        raise ValueError(
            f"{model.name} can't take images of {in_chans}×{image_size}×{image_size}: {first_line(error)}; "
            "give --image-size, --in-chans"
        ) from error
    if logits.dim() != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise ValueError(f"{model.name} gives {tuple(logits.shape)} for 2 images; predict needs logits (2, classes)")
    return logits.shape[1]
