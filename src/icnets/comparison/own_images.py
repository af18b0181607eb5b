"""A comparison of a network and images of one's own: the recipe, and what the network brings along."""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from icnets import checkpoint
from icnets.checkpoint.image_notes import ImageNotes, read_notes
from icnets.comparison.runs import GIVEN
from icnets.open_network import network_file, notes_of_start
from icnets.support.named_code import names_code


def own_recipe(model: str | nn.Module, weights: str | None, images: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a comparison on images of one's own: own_images.yaml, the network's name, start and images, a folder.

    Args:
        model: timm's name, a checkpoint of icnets, code, or a network with its weights.
        weights: file of weights; None: those of the checkpoint or network, or timm's pretrained ones.
        images: options of the data, which go before what the network's file says.

    Raises:
        ValueError: a checkpoint of an IC network, or of one that timm doesn't make; code without weights, or a network
            beside them.
    """
    network, notes = _start(model, weights)
    said = {} if images.get("root") is None else notes.statistics(images.get("in_chans") or 3)  # digits have their own
    label = Path(model).stem if isinstance(model, str) else type(model).__name__
    words = "-".join(("compare", label, Path(images.get("root") or "digits").resolve().name))
    own = {"network": network, "data": {**said, **images}, "out": str(Path("runs") / re.sub(r"[^\w.-]", "_", words))}
    text = files("icnets.comparison").joinpath("own_images.yaml").read_text(encoding="utf-8")
    return over(yaml.safe_load(text), own)


def _start(model: str | nn.Module, weights: str | None) -> tuple[dict[str, Any], ImageNotes]:
    """The settings of a network, and what is noted of the images that its weights are from."""
    if isinstance(model, nn.Module):
        if weights is not None:
            raise ValueError(f"weights is {weights}, but the network has weights already; leave it out")
        return {"name": _given(model), "weights": None}, ImageNotes()
    network: dict[str, Any] = {"name": model, "weights": weights or "pretrained"}
    if (file := network_file(model)) is not None:
        header, _, strings = checkpoint.read(file)
        made = header.get("architecture") or {}
        if header["layers"] or made.get("factory") != "timm.create_model":
            what = "has IC units already" if header["layers"] else "is no network of timm's"
            raise ValueError(f"{model} {what}; give the basic network, or its code and --weights {model}")
        options = {k: v for k, v in made["args"].items() if k not in ("num_classes", "in_chans", "model_name")}
        network = {"name": made["args"]["model_name"], "weights": weights or str(file), "options": options}
        return network, read_notes(strings)
    if names_code(model) and weights is None:
        raise ValueError(f"{model} needs the weights that it starts from: give --weights FILE")
    return network, notes_of_start(Path(weights) if weights else None, model)


def _given(model: nn.Module) -> str:
    """The name under which the runs of this process find a network."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    name = f"{type(model).__name__}-{digest.hexdigest()[:8]}"
    GIVEN[name] = model
    return name


def over(below: Any, above: Any) -> Any:
    """Two nested mappings in one, in which the latter's values hold."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: over(below.get(name), value) for name, value in above.items()}}
