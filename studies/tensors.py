"""Data that fits in memory: splits of tensors, augmented a batch at a time, without a file being read."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from icnets.data.epochs import EpochData
from icnets.data.images import TensorImages, apart, mixing
from icnets.support.text import require_at_least
from studies.cache import cached

__all__ = ["AugmentedImages", "Splits", "TensorData", "cached"]

Part = tuple[Tensor, Tensor]


@dataclass(eq=False)
class AugmentedImages(TensorImages):
    """Images in memory that are not only shifted.

    Args:
        flips: axes along which images are flipped at random, such as -1 for left and right.
        transform: of one image (C, ...), drawing from torch's random numbers, before it is shifted and flipped.
        finish: of a whole batch, at the end, such as the normalisation.
        **options: see :class:`icnets.data.images.TensorImages`.
    """

    _: KW_ONLY
    flips: Sequence[int] = ()
    transform: Callable[[Tensor], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] | None = None

    def read(self, epoch: int, indices: list[int]) -> Tensor:
        """Read images of one epoch, augmented."""
        x = self.images[indices]
        if self.transform is not None:
            with apart(self.seed, epoch, indices[0], 2):
                x = torch.stack([self.transform(image) for image in x])
        x = self.shifted(x, epoch, indices)
        if self.flips:
            table = np.random.default_rng((self.seed, epoch, 3)).random((len(self), len(self.flips)))[indices] < 0.5
            for axis, flip in zip(self.flips, torch.from_numpy(table).T, strict=True):
                x = torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(axis), x)
        return x if self.finish is None else self.finish(x)


@dataclass(frozen=True)
class Splits:
    """Inputs ``(N, C, ...)``, uint8 or float32, with targets ``(N,)`` int64: to train on, to watch, to measure."""

    train: Part
    val: Part
    test: Part
    class_names: Sequence[str]


@dataclass(eq=False, repr=False)
class TensorData(EpochData):
    """Data in memory, normalised per channel by mean and standard deviation of the training part.

    A data set is a subclass with :meth:`splits`. Everything random is drawn by ``seed`` and epoch.

    Args:
        batch_size: examples per training step; the last, smaller batch of an epoch is left out.
        eval_batch_size: examples at a time otherwise.
        seed: of splits, order and augmentation.
        shift: images: largest random shift in pixels.
        hflip: images: flip left and right at random.
        vflip: images: flip up and down at random.
        randaugment: images: strength (0 to 30) of torchvision's RandAugment with 2 operations; None: none.
        mixup: alpha of mixup; 0 for none.
        mix_smoothing: label smoothing of mixed targets, which a loss takes as they are.
        cache: folder for what takes long to make; None: it is made each time.

    Raises:
        ValueError: for an argument out of its range.
    """

    batch_size: int = 100
    eval_batch_size: int = 500
    seed: int = 0
    shift: int = 0
    hflip: bool = False
    vflip: bool = False
    randaugment: int | None = None
    mixup: float = 0.0
    mix_smoothing: float = 0.0
    cache: Path | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.flips = [axis for axis, wanted in ((-1, self.hflip), (-2, self.vflip)) if wanted]
        require_at_least(self, batch_size=2, eval_batch_size=1, seed=0, shift=0, mixup=0, mix_smoothing=0)
        if self.randaugment is not None and not 0 <= self.randaugment <= 30:
            raise ValueError(f"randaugment is {self.randaugment}; its strength must lie between 0 and 30")
        if self.mixup and self.batch_size % 2:
            raise ValueError(f"batch_size is {self.batch_size}; mixup pairs examples, so make it even")

    @abstractmethod
    def splits(self) -> Splits:
        """The data of this seed; raises ValueError where it can't be used."""

    def setup(self, stage: str | None = None) -> None:
        """Make the splits (once, whatever the stage)."""
        if self._splits:
            return
        found = self.splits()
        self._check(found)
        x = found.train[0].float()
        std, mean = torch.std_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        std = std.clamp_min(1e-6)
        self.mean, self.std = tuple(mean.tolist()), tuple(std.tolist())
        shape = (-1, *[1] * (x.dim() - 2))
        finish = partial(_normalized, mean=mean.view(shape), std=std.view(shape))
        self._names = list(found.class_names)
        for name, (images, target) in (("val", found.val), ("test", found.test)):
            self._splits[name] = TensorImages(finish(images), target.tolist())
        self._splits["train"] = self._training_set(*found.train, finish)

    def _training_set(self, images: Tensor, target: Tensor, finish: Callable[[Tensor], Tensor]) -> AugmentedImages:
        mix = mixing(self.mixup, 0.0, self.mix_smoothing, len(self._names))
        options: dict[str, Any] = {"shift": self.shift, "flips": self.flips, "seed": self.seed, "mix": mix}
        if self.randaugment is None:  # then all is normalised once, and black is no longer 0
            black = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)])
            options["fill"] = black.view(-1, *[1] * (images.dim() - 2))
            return AugmentedImages(finish(images), target.tolist(), **options)
        transform = v2.RandAugment(2, self.randaugment)  # type: ignore[attr-defined]  # torchvision exports it so
        return AugmentedImages(images, target.tolist(), transform=transform, finish=finish, **options)

    def _check(self, found: Splits) -> None:
        images = found.train[0]
        if (self.shift or self.flips or self.randaugment is not None) and images.dim() != 4:
            raise ValueError(f"shift, flips and randaugment are for images; these are {tuple(images.shape[1:])}")
        if self.randaugment is not None and images.dtype != torch.uint8:
            raise ValueError(f"randaugment is for images of bytes; these are {images.dtype}")
        for name, (x, target) in (("train", found.train), ("val", found.val), ("test", found.test)):
            if len(x) == 0 or len(x) != len(target):
                raise ValueError(f"the {name} split has {len(x)} examples and {len(target)} targets")
        if len(images) < self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}, but there are {len(images)} training examples")

    @property
    def in_chans(self) -> int:
        """Number of channels."""
        self.setup()
        return len(self.mean)


def _normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x.float() - mean) / std
