"""config.json as timm writes it, so that ``timm.create_model("local-dir:...")`` builds the same IC network."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from icnets.checkpoint.image_notes import read_notes
from icnets.checkpoint.safetensors_file import describe_layers
from icnets.convert.surgery import ICConfig, convert_, revert_
from icnets.support.files import atomic_write
from icnets.support.plain import deepcopy

# What timm says of its own pretrained weights, which these aren't.
_OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "description", "notes")


def timm_arguments(model: nn.Module, known: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The ``ic_`` name and the arguments by which timm makes this very network; None where there are none.

    Args:
        model: the network.
        known: the call that makes the basic network.
    """
    if known is None or known["factory"] != "timm.create_model" or not hasattr(model, "num_classes"):
        return None
    from icnets.timm_models import NETWORKS

    args = dict(known["args"])
    name, config = f"ic_{args.pop('model_name')}", _config_of(model)
    if config is None or name not in NETWORKS or args.get("features_only"):
        return None
    return {"architecture": name, **args, "ic": config.to_dict()}


def _config_of(model: nn.Module) -> ICConfig | None:
    """The configuration by which ``convert_`` makes the units of ``model``; None: there is none, as with a filter."""
    units = describe_layers(model)
    first = next(iter(units.values()), None)
    if first is None or first["gain"] not in (None, 0.0):
        return None
    options: dict[str, Any] = {key: first[key] for key in ("scale", "inner_bias", "collision_weight")}
    options["warm_start"] = "none" if first["gain"] is None else "gain"
    copy = deepcopy(model)
    for linear, layers in itertools.product((False, True), ("all", "kxk", "no-stem")):
        config = ICConfig(layers=layers, linear=linear, **options)
        revert_(copy)
        convert_(copy, config, optimizers=())
        if describe_layers(copy) == units:
            return config
    return None


def write_timm_config(
    model: Any, path: Path, arguments: Mapping[str, Any], classes: Sequence[str], notes: Mapping[str, str]
) -> None:
    """Writes ``path``, a config.json.

    Args:
        model: the network.
        path: the file.
        arguments: from :func:`timm_arguments`.
        classes: the labels; left out unless there is one for each output.
        notes: of the checkpoint: mean, std (numbers joined by commas), image_size, in_chans, where known.

    Raises:
        ValueError: notes that don't fit the network.
    """
    from timm.models._hub import save_config_for_hf

    args = {key: value for key, value in arguments.items() if key != "architecture"}
    more: dict[str, Any] = {"pretrained_cfg": {"architecture": arguments["architecture"]}}
    if len(classes) == model.num_classes:
        more["label_names"] = list(classes)
    channels = getattr(model, "in_chans", int(notes.get("in_chans", 3)))
    images = _images(notes, channels)
    with atomic_write(path) as temporary:
        save_config_for_hf(model, str(temporary), model_config=more, model_args=args, data_config=images)
        config = json.loads(temporary.read_text(encoding="utf-8"))
        for key in _OF_OTHER_WEIGHTS:
            config["pretrained_cfg"].pop(key, None)
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _images(notes: Mapping[str, str], channels: int) -> dict[str, Any]:
    """What timm calls the data configuration, as far as the notes say it."""
    images: dict[str, Any] = {key: tuple(map(float, notes[key].split(","))) for key in ("mean", "std") if key in notes}
    for key, values in images.items():
        if len(values) not in (1, channels):
            raise ValueError(f"{key} is {notes[key]}, of {len(values)} channels, and the network has {channels}")
    known = read_notes(notes)
    if known.image_size is not None:
        images["input_size"] = (channels, known.image_size, known.image_size)
    return images | {k: v for k in ("crop_pct", "interpolation") if (v := getattr(known, k)) is not None}
