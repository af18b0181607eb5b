"""Images read in batches: tensors in memory, or encoded files.

Everything random here depends on (seed, epoch, index of the image) alone: not on the number of workers, not on the
batch an image falls into, and not on what else has drawn random numbers in between. So a run can be repeated, and
resumed anywhere.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from icnets.data.image_files import decode, reason, without_warnings, written
from icnets.data.order import PADDING, Key

Batch = tuple[Tensor, Tensor]
Mix = Callable[[Tensor, Tensor], Batch]
IGNORED = -1  # target of what is no image, or can't be read: evaluation leaves it out

_logger = logging.getLogger(__name__)


def seed_all(*entropy: int, gpus: bool = True) -> None:
    """Seed random, numpy and torch by whole numbers from 0; with ``gpus`` torch on all devices, else on the CPU."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from it
    (torch.manual_seed if gpus else torch.default_generator.manual_seed)(seed)


@contextmanager
def apart(*entropy: int) -> Iterator[None]:
    """Keep the random numbers drawn inside, by the seed ``entropy`` if there is one, from those drawn outside."""
    with isolate_rng(include_cuda=False):
        if entropy:
            seed_all(*entropy, gpus=False)
        yield


class Images(Dataset[Batch]):
    """Images that are read a batch at a time: ``__getitems__`` gives (x, target), mixed where that is wanted."""

    targets: Tensor
    seed: int
    mix: Mix | None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: Sequence[int | Key]) -> Batch:
        """Images (N, C, H, W), float32, normalised; targets (N,) int64, or (N, classes) float32 where mixed.

        A bare index is of epoch 0. The target of ``PADDING`` is ``IGNORED``.
        """
        keys = [(0, key, 0) if isinstance(key, int) else key for key in indices]
        x, target = self.batch([(epoch, max(index, 0), copy) for epoch, index, copy in keys])
        target[torch.tensor([index == PADDING for _, index, _ in keys])] = IGNORED
        if self.mix is None:
            return x, target
        with apart(self.seed, *keys[0][:2], 1):
            x, target = self.mix(x, target)
        return x, target.float()

    def batch(self, keys: list[Key]) -> Batch:
        """Read images (N, C, ...), augmented, and their classes: by epoch, which is one, index and copy."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return what to call an image."""
        return str(index)


def mixing(mixup: float, cutmix: float, smoothing: float, classes: int) -> Mixup | None:
    """Make what mixes the images of a batch. None: neither mixup nor CutMix is wanted."""
    if not (mixup or cutmix):
        return None
    return Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)


def as_is(batch: Any) -> Any:
    """Collate nothing: for a loader of :class:`Images`, which come as a batch already."""
    return batch


@dataclass(eq=False)
class TensorImages(Images):
    """Images (N, C, H, W), or signals (N, C, L), that are in memory.

    Args:
        images: of any dtype, float32 as a rule.
        targets: class indices.
        shift: images are shifted at random by up to so many pixels along both axes.
        fill: what moves in, such as a value per channel (C, 1, 1).
        seed: of everything random.
        mix: mixes a batch.
    """

    images: Tensor
    targets: Any
    _: KW_ONLY
    shift: int = 0
    fill: Tensor | int = 0
    seed: int = 0
    mix: Mix | None = None

    def __post_init__(self) -> None:
        self.targets = torch.as_tensor(self.targets)

    def batch(self, keys: list[Key]) -> Batch:
        indices = [index for _, index, _ in keys]
        return self.read(keys[0][0], indices), self.targets[indices]

    def read(self, epoch: int, indices: list[int]) -> Tensor:
        """Read images of one epoch, augmented."""
        return self.shifted(self.images[indices], epoch, indices)

    def shifted(self, x: Tensor, epoch: int, indices: list[int]) -> Tensor:
        """Shift the images ``x``, which are those of ``indices``, as this epoch has it."""
        if not self.shift:
            return x
        # There is one table for the epoch, so that a draw depends on neither the batch nor the worker.
        table = np.random.default_rng((self.seed, epoch)).integers(0, 2 * self.shift + 1, size=(len(self), 2))[indices]
        padded = F.pad(x - self.fill, (self.shift,) * 4) + self.fill
        moved = zip(padded, table.tolist(), strict=True)
        return torch.stack([image[:, top:, left:][:, : x.shape[2], : x.shape[3]] for image, (top, left) in moved])


@dataclass(eq=False)
class ImageFiles(Images):
    """Encoded images, decoded when asked for, each through ``transform`` (PIL image in RGB -> (3, H, W)).

    With ``in_chans=1`` the image is turned to grey first and the first of its three equal channels is kept. An image
    that can't be read is counted, over all processes that read for this one. In training another one, drawn at random,
    takes its place; in evaluation its target is ``IGNORED``.

    Args:
        paths: the files.
        targets: class indices.
        transform: draws from the random numbers of random, numpy and torch.
        in_chans: 1 or 3.
        seed: of everything random.
        mix: mixes a batch.
        training: whether unreadable images are replaced.
        max_unreadable: number of images that may be unreadable before that is an error.
    """

    paths: Sequence[Path]
    targets: Any
    transform: Callable[[Image.Image], Any]
    _: KW_ONLY
    in_chans: int = 3
    seed: int = 0
    mix: Mix | None = None
    training: bool = False
    max_unreadable: int = 0

    def __post_init__(self) -> None:
        self.targets = torch.as_tensor(self.targets)
        self._unreadable = torch.zeros(len(self.paths), dtype=torch.uint8).share_memory_()

    def name(self, index: int) -> str:
        return written(self.paths[index])

    def unreadable(self) -> list[str]:
        """Names of the images found so far that can't be read."""
        return [self.name(index) for index in torch.nonzero(self._unreadable).flatten().tolist()]

    def batch(self, keys: list[Key]) -> Batch:
        with apart(), without_warnings():  # once for all of them: it takes longer than the seeding
            # In a worker it stacks in shared memory, which the batch would otherwise be copied to.
            x, target = default_collate([self._read(*key) for key in keys])
        return x, target

    def _read(self, epoch: int, index: int, copy: int) -> tuple[Tensor, Tensor]:
        substitutes = np.random.default_rng((self.seed, epoch, index, copy, 4))
        image, target = None, torch.tensor(IGNORED)
        while image is None:
            try:
                image, target = decode(self.paths[index], grey=self.in_chans == 1), self.targets[index]
            except Exception as error:  # decoders raise whatever they stumble over
                self._count_unreadable(index, error)
                if self.training:
                    index = int(substitutes.integers(len(self)))
                else:
                    image = Image.new("RGB", (256, 256))
        seed_all(self.seed, epoch, index, copy, gpus=False)
        return torch.as_tensor(self.transform(image))[: self.in_chans], target

    def _count_unreadable(self, index: int, error: Exception) -> None:
        """Log the first time that an image is found; raise ValueError where that is one too many."""
        new, why = not self._unreadable[index], reason(error)
        self._unreadable[index] = 1
        if (found := int(self._unreadable.sum())) > self.max_unreadable:
            limit = f"{found} images can't be read, and data.max_unreadable is {self.max_unreadable}"
            what = f"can't read the image {self.name(index)}: {why}; {limit}"
            raise ValueError(f"{what}: repair or remove them, or allow more") from error
        if new:
            _logger.warning("can't read the image %s: %s; it is skipped", self.name(index), why)
