"""Open a network from whatever names it: a checkpoint, a run, an exported artifact, or a name of timm's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model
from torch import nn

from icnets import checkpoint, timm_models
from icnets.checkpoint.foreign import read_weights, unpickled
from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg, notes_of_data, read_notes, usual_statistics
from icnets.convert.state_dicts import mismatch, shapes
from icnets.convert.surgery import ICConfig, convert_, load_basic_state_dict
from icnets.deploy.export.engines import SUFFIXES, open_artifact
from icnets.support.text import first_line

_IN_FOLDERS = ("model.safetensors", "checkpoints/best.safetensors", "checkpoints/best.ckpt")


class OpenedNetwork(NamedTuple):
    """A network in eval mode on the CPU, and what is known of its images.

    ``strings``: all that is noted beside the weights. ``file``: where they were; None for a name of timm's.
    """

    network: nn.Module
    notes: ImageNotes
    strings: Mapping[str, str]
    file: Path | None


def open_network(
    source: str | Path,
    *,
    pretrained: bool = False,
    **options: Any,
) -> OpenedNetwork:
    """Open the network that ``source`` names, with its weights.

    Args:
        source: a file of ``icnets.save`` (.safetensors) or of ``icnets fit`` (.ckpt, read by its run's config.yaml), an
            artifact of ``icnets export`` (.onnx, .xml, .pt2), the folder of a run or of ``save_pretrained``, or timm's
            name, with or without ``ic_``.
        pretrained: of a name, with timm's pretrained weights; else they are random.
        **options: more of timm's arguments for a name, such as num_classes; None for those that aren't given.

    Raises:
        ValueError: a file that is missing, damaged or something else; options beside a file; an unknown name.

    Example:
        >>> opened = open_network("ic_resnet18", num_classes=2)
        >>> opened.network(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    given = {name: value for name, value in options.items() if value is not None}
    file = network_file(source)
    if file is None:
        return _named(str(source), pretrained, given)
    if extra := [*given, *["pretrained"] * pretrained]:
        what = "an artifact" if file.suffix in SUFFIXES else "a checkpoint"
        raise ValueError(f"--{extra[0].replace('_', '-')} goes with a network's name, but {source} is {what}")
    if file.suffix == ".ckpt":
        network, notes = _of_run(file)
        return OpenedNetwork(network, notes, notes_of_data(notes), file)
    if file.suffix in SUFFIXES:
        network = open_artifact(file)
        return OpenedNetwork(network, _read(file, network.notes), network.notes, file)
    network, strings = checkpoint.load_with_notes(file)
    return OpenedNetwork(network, _read(file, strings), strings, file)


def network_file(source: str | Path) -> Path | None:
    """The file that ``source`` stands for: itself, or the one in a folder; None: it is a name of timm's."""
    path = Path(source)
    inside = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
    named_so = path.suffix in (".safetensors", ".ckpt", *SUFFIXES)
    named_so |= path.is_file() or (path.is_dir() and not is_model(path.name))
    return inside or (path if named_so else None)


def _read(file: Path, strings: Mapping[str, str]) -> ImageNotes:
    try:
        return read_notes(strings)
    except ValueError as error:
        raise ValueError(f"{file} can't be used: {error}") from error


# Names of timm's.


def _named(name: str, pretrained: bool, options: Mapping[str, Any]) -> OpenedNetwork:
    basic: dict[str, Any] = {} if name.startswith("ic_") else {"ic": None}
    try:
        network: Any = timm_models.create_model(name, pretrained=pretrained, **basic, **options)
    except Exception as error:  # whatever happens on the way to the hub
        if not is_model(name.split(".")[0]):
            raise ValueError(f"there is no file {name}, and {error}") from error
        if pretrained:
            raise ValueError(f"can't get timm's pretrained weights of {name}: {first_line(error)}") from error
        raise
    network.eval()
    if not pretrained:
        return OpenedNetwork(network, ImageNotes(), {}, None)
    subset = infer_imagenet_subset(network)
    info = ImageNetInfo(subset) if subset else None
    names = None if info is None else [info.index_to_description(i) for i in range(info.num_classes())]
    return OpenedNetwork(network, replace(notes_of_cfg(network.pretrained_cfg), class_names=names), {}, None)


def starting_config(name: str, *, trained: bool) -> ICConfig | None:
    """How a named network is converted where nothing is said: those with ``ic_``, from trained weights by "gain"."""
    if name.split(".")[0] not in timm_models.NETWORKS:
        return None
    return ICConfig(warm_start="gain" if trained else "none")


# Checkpoints of a run, and the configuration that it was trained with.


def _of_run(path: Path) -> tuple[nn.Module, ImageNotes]:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check the path")
    content = unpickled(path)
    if not isinstance(content, dict) or not {"state_dict", "icnets"} <= content.keys():
        raise ValueError(f"{path} is no checkpoint of icnets fit; give a .safetensors, or convert it by icnets convert")
    (model, data), names = _config(path), (content["icnets"] or {}).get("class_names")
    if not names or not isinstance(model.get("model"), str):
        raise ValueError(f"{path} is of a network or of images of your own; give the .safetensors beside it")
    notes = _image_notes(data, list(names))
    network = _untrained(model, notes)
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    if (problem := mismatch(shapes(network.state_dict()), shapes(state))) is not None:
        raise ValueError(f"{path} doesn't fit the network of its run's config.yaml: {problem}")
    network.load_state_dict(state)
    return network.eval(), notes


def _config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of model and data by which a run's checkpoint was trained."""
    import yaml

    file = path.parent.parent / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        return dict(config["model"]), dict(config["data"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        what = f"{file}, by which {path} is read, is missing or damaged"
        raise ValueError(f"{what}; give the .safetensors beside it") from None


def _image_notes(options: Mapping[str, Any], names: list[str]) -> ImageNotes:
    """How a run evaluated images, by its options and, where these are null, the defaults of the data module."""
    digits = not any(options.get(name) for name in ("root", "train_shards", "hf"))
    in_chans = options.get("in_chans") or (1 if digits else 3)
    mean, std = (
        tuple(options.get(name) or usual_statistics(name, in_chans, digits=digits)) for name in ("mean", "std")
    )
    size = options.get("image_size") or (8 if digits else 224)
    crop_pct = 1.0 if digits else options.get("crop_pct", 0.95)
    return ImageNotes(size, in_chans, mean, std, crop_pct, options.get("interpolation", "bilinear"), names)


def _untrained(model: Mapping[str, Any], notes: ImageNotes) -> nn.Module:
    """Builds the network as training did, its weights aside: what they started from may be gone, or far away."""
    name, source = model["model"], Path(model.get("init_from") or "")
    ic = ICConfig(**model["ic"]) if model.get("ic") else None
    ic = ic or starting_config(name, trained=bool(model.get("pretrained") or model.get("init_from")))
    sizes: dict[str, Any] = {"num_classes": len(notes.class_names or ()), "in_chans": notes.in_chans}
    network = timm_models.create_model(name, ic=None, **sizes, **(model.get("model_options") or {}))
    if holds_ic_network(source):
        load_weights(network, source)
    if ic is not None:
        convert_(network, ic.without_data(), optimizers=())
    return network


# Weights for a network that is there already.


def load_weights(network: nn.Module, path: Path) -> str:
    """Load trained weights into a basic network, in place.

    Args:
        network: the basic network; it becomes an IC network if the checkpoint holds one. Where the checkpoint names
            another number of classes than a network of timm's has, the last layer stays a new one.
        path: what ``icnets.save`` wrote, or a plain state dict of the basic network (.pth, .pt, .safetensors).

    Returns:
        Where in the file the weights are, "" if they are all of it; see
        :func:`icnets.checkpoint.foreign.read_weights`.

    Raises:
        ValueError: the file is missing, damaged, or doesn't fit the network.
    """
    path = Path(path)
    if written_by_icnets(path):
        with _head_of(network, read_notes(_strings(path) or {}).class_names):
            checkpoint.load(path, network)
        return ""
    weights = read_weights(path, network.state_dict())
    try:
        load_basic_state_dict(network, weights.state)
    except ValueError as error:
        of = f", of which {weights.origin} was read," if weights.origin else ""
        raise ValueError(f"{path}{of} doesn't fit the network: {error}") from error
    return weights.origin


@contextmanager
def _head_of(network: nn.Module, class_names: list[str] | None) -> Iterator[None]:
    """A network of timm's has a last layer for ``class_names`` within, and a new one for its own classes afterwards."""
    timms = cast(Any, network)
    own, name = getattr(timms, "num_classes", None), (getattr(timms, "pretrained_cfg", None) or {}).get("classifier")
    if class_names is None or len(class_names) == own or not isinstance(name, str):
        yield
        return
    head = network.get_submodule(name)
    try:
        timms.reset_classifier(len(class_names))
        yield
        timms.reset_classifier(own)
    except Exception:
        network.set_submodule(name, head)
        timms.num_classes = own
        raise


def _strings(path: Path) -> dict[str, str] | None:
    """The strings in the header of a .safetensors file; None for any other file, and a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return None


def written_by_icnets(path: Path) -> bool:
    """Whether ``icnets.save`` wrote a file; True for a damaged .safetensors too, which reading it explains."""
    strings = _strings(path)
    return path.is_file() and path.suffix == ".safetensors" if strings is None else "icnets" in strings


def holds_ic_network(path: Path) -> bool:
    """Whether a file is a checkpoint of ``icnets.save`` that has IC units; False if it is missing."""
    return "icnets" in (_strings(path) or ()) and bool(checkpoint.read(path)[0]["layers"])


def notes_of_start(path: Path) -> ImageNotes:
    """What is noted of images beside weights; nothing where the file isn't of ``icnets``, or damaged.

    Raises ValueError for a note that makes no sense.
    """
    if path.suffix != ".ckpt":
        strings = _strings(path) or {}
        return _read(path, strings if "icnets" in strings else {})
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        names = content["icnets"]["class_names"]
    except Exception:  # of others, or damaged, which load_weights says
        return ImageNotes()
    try:
        return _image_notes(_config(path)[1], names)
    except ValueError:  # without the configuration of its run
        return ImageNotes(class_names=names)
