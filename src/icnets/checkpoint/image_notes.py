"""What a checkpoint or an artefact notes of its images: size, normalisation, crop and classes, kept as strings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ImageNotes", "as_text", "notes_of_cfg", "notes_of_data", "read_notes"]


@dataclass(frozen=True)
class ImageNotes:
    """How images were evaluated when the network was trained; None for what nobody noted.

    ``image_size``: height and width in pixels. ``mean``, ``std``: per channel, on the scale from 0 to 1. ``crop_pct``:
    that size as a fraction of the shorter side after resizing. ``class_names``: in the order of the outputs.
    """

    image_size: int | None = None
    in_chans: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    class_names: list[str] | None = None

    @property
    def transform(self) -> dict[str, Any]:
        """What is known of normalisation and crop, by the names of ``ImageData``'s arguments."""
        names = ("mean", "std", "crop_pct", "interpolation")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def as_text(value: Any) -> str:
    """A value as a note: items of a list with commas in between; as JSON where they have commas themselves."""
    if not isinstance(value, list | tuple):
        return str(value)
    texts = [str(item) for item in value]
    return json.dumps(texts) if any("," in text for text in texts) else ",".join(texts)


def notes_of_data(data: Any) -> dict[str, str]:
    """What to note beside the weights of a network trained on ``data``, an ImageData or the like: what it knows."""
    names = ("class_names", "mean", "std", "image_size", "in_chans", "crop_pct", "interpolation")
    return {name: as_text(value) for name in names if (value := getattr(data, name, None)) is not None}


def read_notes(notes: Mapping[str, str]) -> ImageNotes:
    """From the strings of a checkpoint (lists with commas) or of an artefact (JSON).

    Raises:
        ValueError: a note that is no such value.
    """
    found: dict[str, Any] = {}
    for name, kind in (("image_size", int), ("in_chans", int), ("crop_pct", float), ("interpolation", str)):
        if name in notes:
            found[name] = _converted(name, notes[name], lambda text, kind=kind: kind(text))
    for name in ("mean", "std"):
        if name in notes:
            found[name] = _converted(name, notes[name], lambda text: tuple(float(item) for item in _items(text)))
    if "class_names" in notes:
        found["class_names"] = [str(item) for item in _items(notes["class_names"])]
    if "input_size" in notes:  # of an artefact, whose size is fixed
        size = _converted("input_size", notes["input_size"], lambda text: [int(item) for item in _items(text)])
        if len(size) != 3 or size[1] != size[2]:
            raise ValueError(f"its input is {'×'.join(map(str, size))}; images are read as channels × N × N pixels")
        found |= {"in_chans": size[0], "image_size": size[1]}
    return ImageNotes(**found)


def notes_of_cfg(cfg: Mapping[str, Any]) -> ImageNotes:
    """From timm's ``pretrained_cfg`` of a pretrained network; its input_size is square, as all of timm's CNNs'."""
    return ImageNotes(
        image_size=int(cfg["input_size"][-1]) if "input_size" in cfg else None,
        in_chans=int(cfg["input_size"][0]) if "input_size" in cfg else None,
        mean=tuple(cfg["mean"]) if cfg.get("mean") is not None else None,
        std=tuple(cfg["std"]) if cfg.get("std") is not None else None,
        crop_pct=cfg.get("crop_pct"),
        interpolation=cfg.get("interpolation"),
    )


def _items(text: str) -> Sequence[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return text.split(",")
    return value if isinstance(value, list) else text.split(",")


def _converted(name: str, text: str, convert: Any) -> Any:
    try:
        return convert(text)
    except (ValueError, TypeError):
        raise ValueError(f"it notes {name} as {text!r}, which makes no sense; write it again") from None
