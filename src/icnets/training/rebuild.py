"""The network of a checkpoint and what the file says of its images.

One of ``icnets fit`` (.ckpt) is read by its run's configuration, without the images of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from icnets import checkpoint
from icnets.checkpoint.image_notes import ImageNotes, read_notes
from icnets.convert.state_dicts import mismatch, shapes
from icnets.convert.surgery import ICConfig
from icnets.data.data_module import ImageData
from icnets.training.network import build_network, holds_ic_network, starting_config, strings_of
from icnets.training.run_checkpoints import read_checkpoint

__all__ = ["notes_of_file", "notes_of_start", "read_model", "rebuild"]

_PREFIX = "network."


def read_model(path: Path) -> tuple[nn.Module, ImageNotes]:
    """The network of a checkpoint of ours, or of save_pretrained's folder, in eval mode on the CPU; its image notes.

    Raises:
        ValueError: a file that is missing, damaged or something else.
    """
    if path.suffix == ".ckpt":
        return rebuild(path)
    if (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    network = checkpoint.load(path)
    return network, notes_of_file(path, strings_of(path))


def notes_of_file(path: Path, strings: Mapping[str, str]) -> ImageNotes:
    """What the strings of a file say of its images; ValueError names the file that holds nonsense."""
    try:
        return read_notes(strings)
    except ValueError as error:
        raise ValueError(f"{path} can't be used: {error}") from error


def notes_of_start(path: Path) -> ImageNotes:
    """What a file of weights says of images and classes; nothing, where it isn't ours."""
    if path.suffix == ".safetensors":
        return notes_of_file(path, strings_of(path))
    if path.suffix != ".ckpt":
        return ImageNotes()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of others, or damaged, which load_weights says
        return ImageNotes()
    notes = content.get("icnets") if isinstance(content, dict) else None
    return ImageNotes(class_names=notes.get("class_names") if isinstance(notes, dict) else None)


def rebuild(path: Path) -> tuple[nn.Module, ImageNotes]:
    """The trained network, in eval mode on the CPU, and how its run evaluated images.

    Raises:
        ValueError: a missing or damaged checkpoint, one without its run's config.yaml, or a network that isn't timm's.
    """
    content = read_checkpoint(path)
    config = _config(path)
    model: Mapping[str, Any] = config["model"]
    data = ImageData(**config["data"])
    names = (content["icnets"] or {}).get("class_names")
    if not isinstance(model.get("model"), str) or not names:
        raise ValueError(
            f"{path} is of a network or of images of your own; give the .safetensors beside it, "
            f"or icnets predict --ckpt_path {path}"
        )
    network = _basic_or_ic(model, len(names), data.in_chans)
    state = {k.removeprefix(_PREFIX): v for k, v in content["state_dict"].items() if k.startswith(_PREFIX)}
    problem = mismatch(shapes(network.state_dict()), shapes(state))
    if problem is not None:
        raise ValueError(f"{path} doesn't fit the network of its run's config.yaml: {problem}")
    network.load_state_dict(state)
    notes = ImageNotes(
        data.image_size, data.in_chans, data.mean, data.std, data.crop_pct, data.interpolation, list(names)
    )
    return network.eval(), notes


def _config(path: Path) -> dict[str, Any]:
    file = path.parent.parent / "config.yaml"
    if not file.is_file():
        raise ValueError(f"there is no {file}, by which {path} is read; give the .safetensors beside it")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(config["model"], dict) and isinstance(config["data"], dict):
            return dict(config)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        pass
    raise ValueError(f"{file}, by which {path} is read, is damaged; give the .safetensors beside it")


def _basic_or_ic(model: Mapping[str, Any], classes: int, in_chans: int) -> nn.Module:
    """The network as training built it, its weights aside: what they started from may be gone, or far away."""
    name, source = model["model"], model.get("init_from")
    ic = ICConfig(**model["ic"]) if model.get("ic") else None
    if ic is None and (model.get("pretrained") or source is not None):
        ic = starting_config(name, trained=True)
    if ic is not None:
        ic = ic.without_data()
    start = Path(source) if source is not None and holds_ic_network(Path(source)) else None
    options: dict[str, Any] = {"num_classes": classes, "in_chans": in_chans, "options": model.get("model_options")}
    return build_network(name, ic=ic, init_from=start, **options)[0]
