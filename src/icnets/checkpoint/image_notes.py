"""What a checkpoint or an artifact notes of its images: size, normalisation, crop and classes, kept as strings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any


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
        return {name: v for name in ("mean", "std", "crop_pct", "interpolation") if (v := getattr(self, name))}

    def statistics(self, channels: int) -> dict[str, list[float]]:
        """Mean and deviation, where they are known of images with so many ``channels``."""
        return {n: list(v) for n in ("mean", "std") if (v := getattr(self, n)) is not None and len(v) == channels}


def as_text(value: Any) -> str:
    """Writes a value as a note: items of a list with commas in between; as JSON where they have commas themselves."""
    if not isinstance(value, list | tuple):
        return str(value)
    texts = [str(item) for item in value]
    return json.dumps(texts) if any("," in text for text in texts) else ",".join(texts)


def notes_of_data(data: Any) -> dict[str, str]:
    """Notes what ``data``, an ImageData or the like, knows of its images, beside the weights trained on it."""
    names = (field.name for field in fields(ImageNotes))
    return {name: as_text(value) for name in names if (value := getattr(data, name, None)) is not None}


def read_notes(notes: Mapping[str, str]) -> ImageNotes:
    """Reads the strings of a checkpoint (lists with commas) or of an artifact (JSON).

    Raises:
        ValueError: a note that is no such value.
    """
    found: dict[str, Any] = {}
    for name in _KINDS.keys() & notes.keys():
        try:
            found[name] = _KINDS[name](notes[name])
        except (ValueError, TypeError):
            raise ValueError(f"it notes {name} as {notes[name]!r}, which makes no sense; write it again") from None
    if size := found.pop("input_size", None):  # of an artifact, whose size is fixed
        if len(size) != 3 or size[1] != size[2]:
            raise ValueError(f"its input is {'×'.join(map(str, size))}; images are read as channels × N × N pixels")
        found |= {"in_chans": size[0], "image_size": size[1]}
    return ImageNotes(**found)


def notes_of_cfg(cfg: Mapping[str, Any]) -> ImageNotes:
    """Reads timm's ``pretrained_cfg`` of a pretrained network; its input_size is square, as all of timm's CNNs'."""
    channels, _, size = cfg.get("input_size") or (None, None, None)
    mean, std = (None if cfg.get(name) is None else tuple(cfg[name]) for name in ("mean", "std"))
    return ImageNotes(size, channels, mean, std, cfg.get("crop_pct"), cfg.get("interpolation"))


def _items(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, list) else text.split(",")


_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("image_size", "in_chans"), int),
    **dict.fromkeys(("mean", "std"), lambda text: tuple(float(item) for item in _items(text))),
    "crop_pct": float,
    "interpolation": str,
    "class_names": lambda text: [str(item) for item in _items(text)],
    "input_size": lambda text: [int(item) for item in _items(text)],
}
