"""How a network is evaluated: which pixels of an image it sees."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor

from icnets.data.image_files import decode, without_warnings
from icnets.support.text import require_at_least

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
_USUAL: Any = None  # ImageNet's
_IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
_DIGITS = {"mean": 0.3053, "std": 0.3760}  # of all 1,797 of scikit-learn's


@dataclass(frozen=True)
class EvaluationTransform:
    """Turns a PIL image into the network's input, as evaluation sees it: resized, its centre cropped, normalised.

    From RGB to float32 ``(in_chans, image_size, image_size)``.

    Args:
        image_size: height and width in pixels that the network sees.
        in_chans: 1 (grey) or 3 (colour).
        mean: per channel, on the scale from 0 to 1. None: ImageNet's.
        std: per channel, on the scale from 0 to 1. None: ImageNet's.
        crop_pct: ``image_size`` as a fraction of the image's shorter side after resizing.
        interpolation: of the resizing: bilinear, bicubic, ...

    Raises:
        ValueError: an argument out of its range; its name is the first word of the message.

    Example:
        >>> from PIL import Image
        >>> transform = EvaluationTransform(32, crop_pct=0.875, interpolation="bicubic")
        >>> transform(Image.new("RGB", (60, 81))).shape
        torch.Size([3, 32, 32])
    """

    image_size: int = 224
    in_chans: int = 3
    mean: tuple[float, ...] = _USUAL
    std: tuple[float, ...] = _USUAL
    crop_pct: float = 0.95
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        require_at_least(self, image_size=1)
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans is {self.in_chans}; images are read with 1 (grey) or 3 (colour) channels")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name))
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; it must be positive")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must be greater than 0 and at most 1")

    def _per_channel(self, name: str) -> tuple[float, ...]:
        given: Sequence[float] | None = getattr(self, name)
        usual = _IMAGENET[name] if self.in_chans == 3 else (sum(_IMAGENET[name]) / 3,)
        values = tuple(map(float, usual if given is None else given))
        if len(values) != self.in_chans:
            raise ValueError(f"{name} has {len(values)} values for {self.in_chans} channels; give one per channel")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} is {values}; its values must be numbers, on the scale from 0 to 1")
        return values

    def __call__(self, image: Any) -> Tensor:
        return self._steps(image)[: self.in_chans]

    @cached_property
    def _steps(self) -> Callable[[Any], Tensor]:
        options: dict[str, Any] = {"crop_pct": self.crop_pct, "interpolation": self.interpolation, **self.statistics}
        return create_transform(self.image_size, **options)

    @property
    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation of an image in RGB; of a grey one the channels are equal."""
        return {"mean": (self.mean * 3)[:3], "std": (self.std * 3)[:3]}

    def read(self, path: Path) -> Tensor:
        """Read an image file. Raises whatever the decoder does."""
        with without_warnings():
            return self(decode(path, grey=self.in_chans == 1))

    def describe(self) -> str:
        """Say in a few words which pixels of an image are seen."""
        side = math.floor(self.image_size / self.crop_pct)  # before the crop, as timm rounds it
        return f"shorter side {self.interpolation} to {side}, the centre crop of {self.image_size} pixels"


VIEW = tuple(field.name for field in fields(EvaluationTransform))


def evaluation_by(options: Mapping[str, Any], *, digits: bool) -> EvaluationTransform:
    """Make the transform of options: what is missing or None is usual, for ``digits`` their own size and statistics.

    Digits are seen whole.

    Raises:
        ValueError: see :class:`EvaluationTransform`.
    """
    given = {name: value for name in VIEW if (value := options.get(name)) is not None}
    if not digits:
        return EvaluationTransform(**given)
    channels = given.get("in_chans", 1)
    own = {"image_size": 8, "in_chans": channels, **{name: (value,) * channels for name, value in _DIGITS.items()}}
    return replace(EvaluationTransform(**own | given), crop_pct=1.0)
