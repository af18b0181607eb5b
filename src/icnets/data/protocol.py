"""How a network is evaluated: which pixels of an image it sees, and what counts as right."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import v2

from icnets.checkpoint.image_notes import usual_statistics
from icnets.data.folders import Listing, find_images
from icnets.data.images import ImageFiles, Normalization
from icnets.data.sources import Paths
from icnets.support.text import few

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
transforms: Any = v2  # which torchvision doesn't export as type checkers want it
_REAL_NAME = "ILSVRC2012_val_{:08d}"  # image i of the validation set, from 1


@dataclass(frozen=True)
class EvaluationTransform:
    """Turns a PIL image in RGB into the network's input (in_chans, image_size, image_size), as evaluation sees it."""

    image_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str

    def __call__(self, image: Any) -> Tensor:
        x: Tensor = self._steps(image)
        return x

    @cached_property
    def _steps(self) -> Callable[[Any], Tensor]:
        options: dict[str, Any] = {"crop_pct": self.crop_pct, "interpolation": self.interpolation, "normalize": False}
        seen: Any = create_transform(self.image_size, **options)
        steps: Callable[[Any], Tensor] = transforms.Compose([seen, Normalization(self.mean, self.std)])
        return steps

    def files(self, paths: Sequence[Path]) -> ImageFiles:
        """Image files of no known class, each through this transform: see ``ImageFiles.evaluated``."""
        return ImageFiles(Paths(paths), [0] * len(paths), self, in_chans=self.in_chans)


def evaluation_transform(
    image_size: int = 224,
    *,
    in_chans: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float = 0.95,
    interpolation: str = "bilinear",
) -> EvaluationTransform:
    """Make the transform of evaluation: resize the shorter side, crop the centre, normalise each channel.

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
        >>> transform = evaluation_transform(32, crop_pct=0.875, interpolation="bicubic")
        >>> transform(Image.new("RGB", (60, 81))).shape
        torch.Size([3, 32, 32])
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1")
    if in_chans not in (1, 3):
        raise ValueError(f"in_chans is {in_chans}; images are read with 1 (grey) or 3 (colour) channels")
    channels = {name: _per_channel(name, given, in_chans) for name, given in (("mean", mean), ("std", std))}
    if min(channels["std"]) <= 0:
        raise ValueError(f"std is {channels['std']}; it must be positive")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}; it must be greater than 0 and at most 1")
    return EvaluationTransform(image_size, in_chans, **channels, crop_pct=crop_pct, interpolation=interpolation)


def _per_channel(name: str, given: Sequence[float] | None, in_chans: int) -> tuple[float, ...]:
    values = usual_statistics(name, in_chans, digits=False) if given is None else tuple(float(value) for value in given)
    if len(values) != in_chans:
        raise ValueError(f"{name} has {len(values)} values for {in_chans} channels; give one per channel")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{name} is {values}; its values must be numbers, on the scale from 0 to 1")
    return values


def ten_crops(view: EvaluationTransform) -> Callable[[Any], Tensor]:
    """Make the transform of He et al.'s 10-crop test: corners and centre of a PIL image, and the same mirrored.

    It returns ``(3, 10, size, size)``: the crops behind the channels.
    """
    normalize = transforms.Normalize((view.mean * 3)[:3], (view.std * 3)[:3])
    finish = transforms.Compose([transforms.PILToTensor(), transforms.ToDtype(torch.float32, scale=True), normalize])
    side, mode = resized(view.image_size, view.crop_pct), str_to_interp_mode(view.interpolation)
    crop = [transforms.Resize(side, interpolation=mode), transforms.TenCrop(view.image_size)]
    steps: Callable[[Any], Tensor] = transforms.Compose([*crop, partial(_stacked, finish=finish)])
    return steps


def _stacked(crops: Sequence[Any], finish: Callable[[Any], Tensor]) -> Tensor:
    return torch.stack([finish(crop) for crop in crops], dim=1)


def describe(data: Any, images: int) -> str:
    """Say in one line how the test images of an ``ImageData`` are evaluated."""
    labels = "one label an image" if data.real_labels is None else f"ImageNet-ReaL labels of {data.real_labels}"
    if data.digits:
        return f"protocol: handwritten digits, whole, {data.image_size} pixels; {images:,} images, {labels}"
    crops = "the centre crop" if data.test_crops == 1 else "10 crops, their probabilities averaged,"
    side = resized(data.image_size, data.crop_pct)
    pixels = f"shorter side {data.interpolation} to {side}, {crops} of {data.image_size} pixels"
    return (
        f"protocol: {pixels}; {data.test_root or data.root or data.hf or data.val_shards}, {images:,} images, {labels}"
    )


def resized(size: int, crop_pct: float) -> int:
    """Return the shorter side of an image before a crop of ``size``, as timm rounds it."""
    return math.floor(size / crop_pct)


def average_crops(logits: Tensor, images: int) -> Tensor:
    """Return log mean probabilities (N, classes) over the crops of each of N images, whose logits follow each other."""
    probabilities = logits.float().softmax(1).view(images, -1, logits.shape[1]).mean(1)
    return probabilities.log()


def find_test_images(folder: Path, class_names: Sequence[str]) -> Listing:
    """List the images of a separate test set, with the classes of the training.

    Class folders have the training's names (not all of them need be there), or are numbers from 0 on, as ImageNetV2's:
    folder k is then class k of the training's sorted names. Sorted as text 10 would come before 2.

    Raises:
        ValueError: a folder that is no class of the training.
    """
    paths, targets, names = find_images(folder)
    if extra := sorted(set(names) - set(class_names)):
        if not all(name.isdecimal() for name in names):
            raise ValueError(f"{folder} has classes that the training has not: {few([repr(name) for name in extra])}")
        index = [int(name) for name in names]
        if max(index) >= len(class_names) or len(set(index)) < len(index):
            raise ValueError(
                f"the class folders of {folder} are numbers up to {max(index)}, but the training has "
                f"{len(class_names)} classes: they must be 0 to {len(class_names) - 1}"
            )
    else:
        index = [class_names.index(name) for name in names]
    return Listing(paths, [index[target] for target in targets], list(class_names))


def read_real_labels(file: Path, paths: Sequence[Path], classes: int) -> Tensor:
    """Read ImageNet-ReaL (arXiv 2006.07159): which classes are right for each image.

    Args:
        file: real.json of github.com/google-research/reassessed-imagenet: a list of class indices per image.
        paths: of the validation images, with their original names, ILSVRC2012_val_00000001.JPEG and so on.
        classes: number of classes of the network.

    Returns:
        ``(len(paths), classes)`` bool; a row without any is an image without labels, which is left out.

    Raises:
        ValueError: the file is missing or something else, or an image has another name.
    """
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"can't read real_labels {file}: {error}; it is real.json of reassessed-imagenet") from error
    if not isinstance(labels, list) or not all(isinstance(row, list) for row in labels):
        raise ValueError(f"real_labels {file} must hold a list of class indices for each image")
    rows = {_REAL_NAME.format(i + 1): row for i, row in enumerate(labels)}
    unknown = [path.name for path in paths if path.stem not in rows]
    if unknown:
        raise ValueError(f"real_labels knows no image {few(unknown)}: test images need their names of ImageNet's val")
    right = torch.zeros(len(paths), classes, dtype=torch.bool)
    for i, path in enumerate(paths):
        row = rows[path.stem]
        if row and not 0 <= min(row) <= max(row) < classes:
            raise ValueError(f"real_labels has class {max(row)} for {path.name}, but the network has {classes} classes")
        right[i, row] = True
    return right


def best_label(logits: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Choose single labels for images with several right classes each; images without any are left out.

    The label is the right class with the largest logit: so it is among the k largest logits exactly where any right
    class is.

    Args:
        logits: ``(N, classes)``.
        right: ``(N, classes)`` bool.

    Returns:
        ``(M, classes)`` and ``(M,)`` int64, M <= N.
    """
    labelled = right.any(1)
    logits, right = logits[labelled], right[labelled]
    return logits, logits.masked_fill(~right, -math.inf).argmax(1)
