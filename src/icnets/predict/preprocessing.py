"""How images become the network's input: as in its evaluation, as far as that is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from icnets.checkpoint.image_notes import ImageNotes
from icnets.data.data_module import ImageData
from icnets.data.protocol import resized

__all__ = ["describe", "image_data"]


def image_data(
    name: str, notes: ImageNotes, given: Mapping[str, Any], network: nn.Module | None, fixed: bool = False
) -> tuple[ImageData, list[str]]:
    """The data module whose evaluation is repeated, and what of it is nobody's word but a default.

    Each of ``image_size``, ``in_chans``, ``mean``, ``std``, ``crop_pct`` and ``interpolation`` is what was ``given``
    (None: nothing), else what the model notes, else the network's own size, or the default of ``icnets fit``.

    Args:
        name: the model's, for messages.
        fixed: whether the model takes its noted size and channels only.

    Raises:
        ValueError: an argument out of its range, an unknown size, or another than the model's fixed one.
    """
    known = {key: value for key, value in vars(notes).items() if value is not None and key != "class_names"}
    wanted = {key: value for key, value in given.items() if value is not None}
    for key in ("image_size", "in_chans") if fixed else ():
        if wanted.get(key, known[key]) != known[key]:
            option = f"--{key.replace('_', '-')}"
            raise ValueError(f"{option} is {wanted[key]}, but {name} was exported for {known[key]}; leave it out")
    values = {**_own(network), **known, **wanted}
    if "image_size" not in values:
        raise ValueError(f"{name} doesn't say how large its images are; give --image-size N")
    for key in ("mean", "std"):
        if key in wanted and len(wanted[key]) == 1:
            values[key] = wanted[key] * values.get("in_chans", 3)
    try:
        data = ImageData(Path(), **values)  # the folder is never looked at
    except ValueError as error:
        key = str(error).split()[0]
        raise ValueError(f"{name} notes that {error}" if key in known and key not in wanted else str(error)) from error
    names = ("image_size", "in_chans", "mean", "std", "crop_pct", "interpolation")
    return data, [key for key in names if key not in known and key not in wanted]


def _own(network: nn.Module | None) -> dict[str, int]:
    """Size and channels as timm notes them on a network, or as its first convolution has them."""
    if network is None:
        return {}
    from icnets.deploy.export.core import own_input_size

    size = own_input_size(network)
    if size is not None:
        return {"in_chans": size[0], "image_size": size[-1]}
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return {} if first is None else {"in_chans": first.in_channels}


def describe(data: ImageData, assumed: list[str], name: str) -> str:
    """One line that says what is done to the images, and which part of it the model doesn't say."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    text = (
        f"images: shorter side {data.interpolation} to {resized(data.image_size, data.crop_pct)}, the centre crop of "
        f"{data.image_size} pixels, {'grey, ' if data.in_chans == 1 else ''}mean {mean}, std {std}"
    )
    if assumed:
        options = ", ".join("--" + key.replace("_", "-") for key in assumed)
        text += f"; {name} doesn't say {options}: these are defaults, give them if it was trained otherwise"
    return text
