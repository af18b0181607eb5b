"""How training images are varied: crops, flips, colours, erased rectangles, and batches that are mixed."""

from collections.abc import Callable
from typing import Any

from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor

from icnets.data.protocol import EvaluationTransform


def mixing(mixup: float, cutmix: float, smoothing: float, classes: int) -> Mixup | None:
    """Make what mixes the images of a batch. None: neither mixup nor CutMix is wanted."""
    if not (mixup or cutmix):
        return None
    return Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)


def training_transform(options: Any, view: EvaluationTransform) -> Callable[[Any], Tensor]:
    """Make the transform from a PIL image in RGB to the augmented input, of the size and statistics of ``view``.

    Args:
        options: an :class:`icnets.data.data_module.ImageData`.
        view: how evaluation sees the images.

    Raises:
        ValueError: an ``auto_augment`` that timm doesn't understand.
    """
    own: dict[str, Any] = {name: getattr(options, name) for name in ("hflip", "color_jitter", "auto_augment")}
    own |= {"scale": (options.min_scale, 1.0), "re_prob": options.erase, "interpolation": "bilinear"}
    try:
        return create_transform(view.image_size, is_training=True, **own, **view.statistics)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        what = f"auto_augment is {options.auto_augment!r}"
        raise ValueError(f"{what}; timm understands e.g. rand-m9-mstd0.5, augmix-m3 or original") from error
