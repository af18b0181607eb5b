"""Data that fits in memory: splits of tensors, augmented a batch at a time, without a file being read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from icnets.data.epochs import EpochData
from icnets.data.images import TensorImages
from icnets.support.files import atomic_write

__all__ = ["Splits", "TensorData", "cached"]

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """Inputs ``(N, C, ...)``, uint8 or float32, with targets ``(N,)`` int64: to train on, to watch, to measure."""

    train: Part
    val: Part
    test: Part
    class_names: Sequence[str]


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
        randaugment: images: strength (0 to 30) of torchvision's RandAugment with 2 operations; nothing: none.
        mixup: alpha of mixup; 0 for none.
        mix_smoothing: label smoothing of mixed targets, which a loss takes as they are.
        cache: folder for what takes long to make; nothing: it is made each time.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 0,
        shift: int = 0,
        hflip: bool = False,
        vflip: bool = False,
        randaugment: int | None = None,
        mixup: float = 0.0,
        mix_smoothing: float = 0.0,
        cache: Path | None = None,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("batch_size", batch_size, 2), ("eval_batch_size", eval_batch_size, 1), ("seed", seed, 0),
            ("shift", shift, 0), ("mixup", mixup, 0), ("mix_smoothing", mix_smoothing, 0),
        ):  # fmt: skip
            if not value >= low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")
        if randaugment is not None and not 0 <= randaugment <= 30:
            raise ValueError(f"randaugment is {randaugment}; its strength must lie between 0 and 30")
        if mixup and batch_size % 2:
            raise ValueError(f"batch_size is {batch_size}; mixup pairs examples, so make it even")
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.shift, self.flips = shift, [axis for axis, wanted in ((-1, hflip), (-2, vflip)) if wanted]
        self.randaugment, self.mixup, self.mix_smoothing = randaugment, mixup, mix_smoothing
        self.cache = cache
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self._splits: Splits | None = None
        self._sets: dict[str, TensorImages] = {}

    @abstractmethod
    def splits(self) -> Splits:
        """The data of this seed; raises ValueError where it can't be used."""

    def setup(self, stage: str | None = None) -> None:
        """Make the splits (once, whatever the stage)."""
        if self._sets:
            return
        self._splits = found = self.splits()
        self._check(found)
        x = found.train[0].float()
        std, mean = torch.std_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        std = std.clamp_min(1e-6)
        self.mean, self.std = tuple(mean.tolist()), tuple(std.tolist())
        shape = (-1, *[1] * (x.dim() - 2))
        finish = partial(_normalized, mean=mean.view(shape), std=std.view(shape))
        for name in ("val", "test"):
            images, target = getattr(found, name)
            self._sets[name] = TensorImages(finish(images), target.tolist())
        self._sets["train"] = self._training_set(*found.train, finish)

    def _training_set(self, images: Tensor, target: Tensor, finish: Callable[[Tensor], Tensor]) -> TensorImages:
        mix = None
        if self.mixup:
            mix = Mixup(self.mixup, label_smoothing=self.mix_smoothing, num_classes=self.num_classes)
        options: dict[str, Any] = {"shift": self.shift, "flips": self.flips, "seed": self.seed, "mix": mix}
        if self.randaugment is None:  # then all is normalised once, and black is no longer 0
            black = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
            return TensorImages(finish(images), target.tolist(), fill=black, **options)
        transform = v2.RandAugment(2, self.randaugment)  # type: ignore[attr-defined]  # torchvision exports it so
        return TensorImages(images, target.tolist(), transform=transform, finish=finish, **options)

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
    def class_names(self) -> list[str]:
        """Names of the classes; their order is that of the network's outputs."""
        self.setup()
        assert self._splits is not None
        return list(self._splits.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        assert self._splits is not None
        return len(self._splits.class_names)

    @property
    def in_chans(self) -> int:
        """Number of channels."""
        self.setup()
        assert self._splits is not None
        return self._splits.train[0].shape[1]

    def size(self, split: str) -> int:
        """Number of examples in "train", "val" or "test"."""
        self.setup()
        return len(self._sets[split])

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target): x (N, C, ...) float32; target (N,) int64, or (N, classes) float32 where mixed."""
        self.setup()
        images = self._sets["train"]
        return self.loader(images, self.epoch_batches(images, self.batch_size, self.seed))

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target), not augmented, in a fixed order."""
        self.setup()
        return self.loader(self._sets["val"], self.evaluation_batches(self._sets["val"], self.eval_batch_size))

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target), not augmented, in a fixed order."""
        self.setup()
        return self.loader(self._sets["test"], self.evaluation_batches(self._sets["test"], self.eval_batch_size))


def _normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x.float() - mean) / std


def cached(folder: Path | None, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that ``make`` gives, kept in ``folder``/``name``.npz; without a folder they are made each time.

    Processes may race for it: each puts a whole file in place.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = make()
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path) as found:
        return dict(found)
