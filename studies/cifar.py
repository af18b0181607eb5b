"""CIFAR-10 and CIFAR-100, as torchvision reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from icnets.data.folders import take
from studies.tensors import Part, Splits, TensorData

__all__ = ["CIFAR10", "CIFAR100"]


class CIFAR10(TensorData):
    """60,000 colour images of 32², in ten classes.

    Args:
        root: folder with ``cifar-10-batches-py``, as torchvision lays it out.
        val: number of training images that are watched instead of trained on, drawn by class and seed.
        train: number of training images; all that are left by default.
        download: let torchvision fetch them to ``root`` if they are not there.
        **options: see :class:`studies.tensors.TensorData`; usual are shift 4 and hflip.
    """

    reader = datasets.CIFAR10

    def __init__(
        self, root: Path, val: int = 5000, train: int | None = None, download: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.val, self.train_size, self.download = Path(root), val, train, download

    def splits(self) -> Splits:
        (images, target), test = self._read(True), self._read(False)
        val, rest = take(target.tolist(), self.val, self.seed, leave=1)
        if self.train_size is not None:
            rest = [rest[i] for i in take(target[rest].tolist(), self.train_size, self.seed)[0]]
        names = self.reader(self.root, train=False).classes
        return Splits((images[rest], target[rest]), (images[val], target[val]), test, names)

    def _read(self, train: bool) -> Part:
        try:
            found = self.reader(self.root, train=train, download=self.download)
        except RuntimeError as error:
            raise ValueError(
                f"{self.root} doesn't hold {self.reader.__name__}: {error}; or set data.download"
            ) from error
        return torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)


class CIFAR100(CIFAR10):
    """60,000 colour images of 32², in a hundred classes; ``root`` holds ``cifar-100-python``."""

    reader = datasets.CIFAR100
