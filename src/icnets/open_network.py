"""Open a network from whatever names it: a checkpoint, a run, an artifact, a name of timm's, or code of your own."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from icnets import checkpoint, timm_models
from icnets.checkpoint.foreign import unpickled
from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg, notes_of_data, read_notes
from icnets.checkpoint.weights_files import holds_ic_network, load_weights, new_head_of, noted, strings_of, weights_of
from icnets.convert.config import ICConfig
from icnets.convert.state_dicts import mismatch, shapes
from icnets.convert.surgery import convert_
from icnets.data.protocol import evaluation_by
from icnets.deploy.export.engines import SUFFIXES, open_artifact
from icnets.deploy.fuse import own_input_size
from icnets.support.named_code import imported, names_code
from icnets.support.text import few, first_line

_BEST = "best.safetensors"
_IN_FOLDERS = ("model.safetensors", "checkpoints/best.safetensors", "checkpoints/best.ckpt")


class OpenedNetwork(NamedTuple):
    """A network in eval mode on the CPU, and what is known of its images.

    ``strings``: all that is noted beside the weights. ``file``: where they were; None for a name alone.
    """

    network: nn.Module
    notes: ImageNotes
    strings: Mapping[str, str]
    file: Path | None

    @property
    def image_shape(self) -> tuple[int, int | None]:
        """Channels and height of its images: as noted, else as timm or the first convolution has them, or None."""
        own = own_input_size(self.network) or (0, None)
        channels = next((m.in_channels for m in self.network.modules() if isinstance(m, nn.Conv2d)), 3)
        return self.notes.in_chans or own[0] or channels, self.notes.image_size or own[-1]


def open_network(
    source: str | Path, *, pretrained: bool = False, weights: str | Path | None = None, **options: Any
) -> OpenedNetwork:
    """Open the network that ``source`` names, with its weights.

    Args:
        source: a file of ``icnets.save`` (.safetensors) or of ``icnets fit`` (.ckpt, read by its run's config.yaml), an
            artifact of ``icnets export`` (.onnx, .xml, .pt2), the folder of a run or of ``save_pretrained``, timm's
            name, with or without ``ic_``, or code: ``my_package:MyCNN``, ``my_file.py:make_model``, which is imported.
        pretrained: of timm's name, with its pretrained weights; else a name's are random.
        weights: of a name, the file or run that holds its weights; what that notes of classes and channels is used.
        **options: more arguments for a name, such as num_classes; None for those that aren't given.

    Raises:
        ValueError: a file that is missing, damaged or something else; options beside a file; an unknown name.

    Example:
        >>> opened = open_network("ic_resnet18", num_classes=2)
        >>> opened.network(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    given = {name: value for name, value in options.items() if value is not None}
    file = network_file(source)
    if file is None and weights is not None:
        if pretrained:
            raise ValueError("--pretrained and --weights each say which weights; give one of them")
        file = network_file(weights) or Path(weights)
        network, notes, _ = named_with_weights(str(source), file, given)
        if (ic := starting_config(str(source), trained=True)) is not None:
            convert_(network, ic, optimizers=())  # what the file has as IC units stays as it is
        return OpenedNetwork(network, notes, noted(file) or notes_of_data(notes), file)
    if file is None:
        return _named(str(source), pretrained, given)
    if extra := [*given, *["pretrained"] * pretrained, *["weights"] * (weights is not None)]:
        what = "an artifact" if file.suffix in SUFFIXES else "a checkpoint"
        raise ValueError(f"--{extra[0].replace('_', '-')} goes with a network's name, but {source} is {what}")
    if file.suffix == ".ckpt":
        network, notes = _of_run(file)
        return OpenedNetwork(network, notes, notes_of_data(notes), file)
    if file.suffix in SUFFIXES:
        network = open_artifact(file)
        return OpenedNetwork(network, _read(file, network.notes), network.notes, file)
    try:
        network, strings = checkpoint.load_with_notes(file)
    except checkpoint.UnknownNetworkError as error:
        raise ValueError(f"{file} {_code_needed(file, first_line(error))}") from error
    return OpenedNetwork(network, _read(file, strings), strings, file)


def network_file(source: str | Path) -> Path | None:
    """The file that ``source`` stands for: itself, or the one in a folder; None: it is a name.

    Raises:
        ValueError: a folder of runs, or a file of code without the network's name in it.
    """
    path = Path(source)
    if names_code(str(source)):
        return None
    if path.suffix == ".py":
        raise ValueError(f"{source} is code; say which class or function in it makes the network: {source}:NAME")
    inside = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
    if inside is None and path.is_dir():
        runs = [str(run) for run in sorted(path.iterdir()) if any((run / name).is_file() for name in _IN_FOLDERS)]
        if runs:
            raise ValueError(f"{source} is a folder of runs; give one of them: {few(runs)}")
    named_so = path.suffix in (".safetensors", ".ckpt", *SUFFIXES)
    named_so |= path.is_file() or (path.is_dir() and not is_model(path.name))
    return inside or (path if named_so else None)


def _read(file: Path, strings: Mapping[str, str]) -> ImageNotes:
    try:
        return read_notes(strings)
    except ValueError as error:
        raise ValueError(f"{file} can't be used: {error}") from error


# Names: timm's, and code.


def make_network(
    name: str, /, num_classes: int | None = None, *, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Make the basic network that a name stands for, with random weights; where asked for, timm's pretrained ones.

    Args:
        name: timm's, with or without ``ic_``; or a class or function, ``my_package:MyCNN``, ``my_file.py:make_model``,
            which is imported and called with num_classes and, if its signature has it, in_chans.
        num_classes: None leaves it to the network.
        pretrained: of timm's names.
        **options: more arguments; in_chans may be None too.

    Raises:
        ValueError: there is no such network, it can't be made with these arguments, or its weights can't be had.

    Example:
        >>> make_network("torchvision.models:resnet18", 4)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 4])
    """
    network_file(name)  # a file of code alone says what is missing
    sizes = {"num_classes": num_classes, "in_chans": options.pop("in_chans", None)}
    given = {**{key: value for key, value in sizes.items() if value is not None}, **options}
    if names_code(name):
        if pretrained:
            raise ValueError(f"pretrained goes with timm's names; give {name} its weights by --weights FILE")
        return _made(name, given)
    try:
        return timm_models.create_model(name, pretrained=pretrained, ic=None, **given)
    except Exception as error:
        if not is_model(name.split(".")[0]) or not (pretrained or options):
            raise
        if pretrained and not isinstance(error, TypeError):  # whatever happens on the way to the hub
            what = f"can't get timm's pretrained weights of {name}: {first_line(error).partition('. ')[0]}"
            raise ValueError(f"{what}; if you have them as a file, give --weights FILE") from error
        # timm stumbles over unfitting options somewhere within, by any kind of error
        what = f"timm can't make {name} with the options {options}: {first_line(error)}"
        raise ValueError(f"{what}; check them") from error


def _made(name: str, given: dict[str, Any]) -> nn.Module:
    make = imported(name)
    if not callable(make) or isinstance(make, nn.Module):
        raise ValueError(f"{name} is a {type(make).__name__}; name a class or function that makes the network")
    if "in_chans" not in inspect.signature(make).parameters:
        given.pop("in_chans", None)
    try:
        network = make(**given)
    except Exception as error:  # whatever their code raises
        call = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ValueError(f"{name}({call}) fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} makes a {type(network).__name__}; it must make an nn.Module")
    return network


def _named(name: str, pretrained: bool, options: dict[str, Any]) -> OpenedNetwork:
    try:
        network: Any = make_network(name, pretrained=pretrained, **options)
    except ValueError as error:
        if names_code(name) or is_model(name.split(".")[0]):
            raise
        raise ValueError(f"there is no file {name}, and {error}") from error
    if (ic := starting_config(name, trained=pretrained)) is not None:
        convert_(network, ic, optimizers=())
    network.eval()
    if not pretrained:
        return OpenedNetwork(network, ImageNotes(), {}, None)
    subset = infer_imagenet_subset(network)
    info = ImageNetInfo(subset) if subset else None
    names = None if info is None else [info.index_to_description(i) for i in range(info.num_classes())]
    return OpenedNetwork(network, replace(notes_of_cfg(network.pretrained_cfg), class_names=names), {}, None)


def named_with_weights(name: str, file: Path, options: Mapping[str, Any]) -> tuple[nn.Module, ImageNotes, str]:
    """Make the network of a name with the weights of a file, whose notes, or else its last layer, say the classes.

    Args:
        name: timm's, or code; see :func:`make_network`.
        file: see :func:`icnets.checkpoint.weights_files.load_weights`.
        options: more arguments for the name, num_classes and in_chans among them; None for those that aren't given.

    Returns:
        The network in eval mode, basic unless the file holds an IC network; what the file notes of images; and where in
        it the weights stand.

    Raises:
        ValueError: there is no such network or file, or they don't fit.
    """
    notes = notes_of_start(file)
    given: dict[str, Any] = {"num_classes": len(notes.class_names or ()) or None, "in_chans": notes.in_chans}
    given |= {key: value for key, value in options.items() if value is not None}
    if given["num_classes"] is None:
        sample = make_network(name, **given | {"num_classes": 2})
        head = new_head_of(sample, weights_of(file, sample).state)
        given["num_classes"] = 2 if head is None else head[1]
    network = make_network(name, **given)
    origin = load_weights(network, file, new_head=False)
    return network.eval(), notes, origin


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
    if names_code(model["model"]):
        raise ValueError(f"{path} {_code_needed(path)}")
    notes = _image_notes(data, list(names))
    network = _untrained(model, notes)
    weights = content["state_dict"].items()
    state = {key.removeprefix("network."): value for key, value in weights if key.startswith("network.")}
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


def _code_needed(file: Path, why: str = "") -> str:
    """What to give beside a file whose network only code of the user's makes: no file imports it by itself."""
    name = None
    with suppress(ValueError):
        name = _config(file)[0].get("model")
    ours = isinstance(name, str) and names_code(name)
    code, why = (name, "") if ours else ("my_cnn.py:MyCNN", f" ({why})" if why else "")
    weights = file.with_suffix(".safetensors") if file.with_suffix(".safetensors").is_file() else file.parent / _BEST
    return f"is of a network of your own; name its code too: {code} --weights {weights}{why}"


def _image_notes(options: Mapping[str, Any], names: list[str]) -> ImageNotes:
    """How a run evaluated images, by its options and, where these are null, the defaults of the data module."""
    digits = not any(options.get(name) for name in ("root", "train_shards", "hf"))
    return ImageNotes(**asdict(evaluation_by(options, digits=digits)), class_names=names)


def _untrained(model: Mapping[str, Any], notes: ImageNotes) -> nn.Module:
    """Builds the network as training did, its weights aside: what they started from may be gone, or far away."""
    name, source = model["model"], Path(model.get("init_from") or "")
    ic = ICConfig(**model["ic"]) if model.get("ic") else None
    ic = ic or starting_config(name, trained=bool(model.get("pretrained") or model.get("init_from")))
    sizes: dict[str, Any] = {"num_classes": len(notes.class_names or ()), "in_chans": notes.in_chans}
    network = make_network(name, **sizes | (model.get("model_options") or {}))
    if holds_ic_network(source):
        load_weights(network, source)
    if ic is not None:
        convert_(network, ic.without_data(), optimizers=())
    return network


def notes_of_start(path: Path | None, name: str = "") -> ImageNotes:
    """What is noted of images beside weights to start from; nothing where the file isn't of ``icnets``, or damaged.

    What the file is silent of, timm's network of that ``name`` says: weights of others are mostly trained as its own.

    Raises ValueError for a note that makes no sense.
    """
    cfg = get_pretrained_cfg(name.removeprefix("ic_"), allow_unregistered=True)
    usual, found = ImageNotes() if cfg is None else notes_of_cfg(cfg.to_dict()), _of_file(path)
    return replace(usual, **{name: value for name, value in vars(found).items() if value is not None})


def _of_file(path: Path | None) -> ImageNotes:
    if path is None:
        return ImageNotes()
    if path.suffix != ".ckpt":
        strings = strings_of(path) or {}
        return _read(path, strings if "icnets" in strings else {})
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        names = content["icnets"]["class_names"]
    except Exception:  # of others, or damaged, which load_weights says
        return ImageNotes()
    with suppress(ValueError):  # without the configuration of its run
        return _image_notes(_config(path)[1], names)
    return ImageNotes(class_names=names)
