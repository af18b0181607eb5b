"""How training images are varied: crops, flips, colours, erased rectangles, and batches that are mixed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform

from icnets.data.protocol import EvaluationTransform


def mixing(mixup: float, cutmix: float, smoothing: float, classes: int) -> Mixup | None:
    """Make what mixes the images of a batch. None: neither mixup nor CutMix is wanted."""
    if not (mixup or cutmix):
        return None
    return Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)


@dataclass(eq=False, repr=False)
class Augmentation:
    """The options of :class:`icnets.data.data_module.ImageData` that vary what training sees."""

    shift: int = 1
    min_scale: float = 0.35
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_smoothing: float = 0.0
    repeats: int = 1

    def training_transform(self, view: EvaluationTransform) -> Callable[[Any], Any]:
        """Make the transform from a PIL image in RGB to the augmented input, of the size and statistics of ``view``.

        Raises:
            ValueError: an ``auto_augment`` that timm doesn't understand.
        """
        options: dict[str, Any] = {"hflip": self.hflip, "color_jitter": self.color_jitter, "re_prob": self.erase}
        options |= {"scale": (self.min_scale, 1.0), "auto_augment": self.auto_augment, "interpolation": "bilinear"}
        try:
            return create_transform(view.image_size, is_training=True, **options, **view.statistics)
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}; timm understands e.g. rand-m9-mstd0.5, augmix-m3 or original"
            ) from error
