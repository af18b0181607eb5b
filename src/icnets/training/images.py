"""What stands behind :class:`icnets.training.data.ImageData`: finding images, splitting them, reading them in batches.

Everything random here depends on (seed, epoch, index of the image) alone: not on the number of workers, not on the
batch an image falls into, and not on what else has drawn random numbers in between. So a run can be repeated, and
resumed at any epoch.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from timm.data.readers import get_img_extensions
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from icnets.messages import few

__all__ = [
    "EpochShuffle",
    "FolderImages",
    "Listing",
    "TensorImages",
    "as_is",
    "class_names",
    "find_images",
    "images_below",
    "require_readable",
    "split_folders",
    "take",
]

_SPLITS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}

Key = tuple[int, int]  # (epoch, index of the image)
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Listing:
    """Images of a folder of class folders: sorted paths, the class index of each, and the class names."""

    paths: list[Path]
    targets: list[int]
    class_names: list[str]


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of "train", "val" and "test" that there are; none if ``root`` has no train/."""
    if not (root / "train").is_dir():
        return {}
    found = {split: next((root / n for n in names if (root / n).is_dir()), None) for split, names in _SPLITS.items()}
    return {split: folder for split, folder in found.items() if folder is not None}


def class_names(folder: Path) -> list[str]:
    """The subfolders of a folder, sorted; those whose names begin with a dot don't count."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """The files that training reads, in any subfolders, sorted: by their extension, without a look inside."""
    extensions = get_img_extensions(as_set=True)
    found = (p for p in folder.rglob("*") if p.suffix.lower() in extensions and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def find_images(folder: Path, *, classes: bool = True) -> Listing:
    """List a folder whose subfolders are the classes; with ``classes=False``, any folder of images, all of class 0.

    Raises:
        ValueError: the folder is missing, has no class folders, or one of these holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one whose subfolders are the classes")
    if not classes:
        paths = images_below(folder)
        if not paths:
            raise ValueError(f"{folder} holds no images ({', '.join(sorted(get_img_extensions()))})")
        return Listing(paths, [0] * len(paths), [])
    names = class_names(folder)
    if len(names) < 2:
        found = f"{len(names) or 'no'} class folder{'s' * (len(names) != 1)}"
        raise ValueError(f"{folder} has {found}: classification needs 2 or more, each with the images of one class")
    per_class = [images_below(folder / name) for name in names]
    empty = [repr(name) for name, paths in zip(names, per_class, strict=True) if not paths]
    if empty:
        raise ValueError(f"no images in class folder{'s' if len(empty) > 1 else ''} {few(empty)} of {folder}")
    targets = [i for i, paths in enumerate(per_class) for _ in paths]
    return Listing([p for paths in per_class for p in paths], targets, names)


def require_readable(paths: Sequence[Path]) -> None:
    """Open the header of every image.

    Raises:
        ValueError: with the number and the first few of those that can't be opened.
    """
    broken = []
    for path in paths:
        try:
            with Image.open(path):
                pass
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(repr(str(path)))
    if broken:
        raise ValueError(f"{len(broken)} of {len(paths)} images can't be read: {few(broken)}; repair or remove them")


def take(targets: Sequence[int], count: int, seed: int, *, leave: int = 0) -> tuple[list[int], list[int]]:
    """Draw ``count`` of the indices of ``targets``, stratified: every class in its proportion, as far as that goes.

    Returns:
        The indices drawn and the others, both in ascending order. ``leave`` images of every class stay among the
        others; every class is among those drawn if ``count`` is at least the number of classes.

    Raises:
        ValueError: there are not ``count`` images to draw.
    """
    labels = np.asarray(targets)
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    share = np.array([len(g) * count / len(labels) for g in groups])
    low, high = int(count >= len(groups)), np.array([max(len(g) - leave, 0) for g in groups])
    if not 0 <= count <= high.sum():
        raise ValueError(
            f"cannot draw {count} images from {len(labels)} in {len(groups)} classes, leaving {leave} of each"
        )
    quota = np.clip(np.floor(share).astype(int), np.minimum(low, high), high)
    # What rounding left over, or took too much, is settled where the share is missed most.
    while (missing := np.sign(count - quota.sum())) != 0:
        gap = np.where(quota < high if missing > 0 else quota > low, (share - quota) * missing, -np.inf)
        quota[int(np.argmax(gap))] += missing
    drawn = np.sort(np.concatenate([g[:q] for g, q in zip(groups, quota, strict=True)]))
    return drawn.tolist(), np.setdiff1d(np.arange(len(labels)), drawn).tolist()


@contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """Random numbers drawn inside depend on ``entropy`` alone, and those drawn outside don't notice."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm draws from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPU's as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class _Images(Dataset[Batch]):
    """Images that are read a batch at a time: ``__getitems__`` gives (x, target), mixed where that is wanted."""

    def __init__(self, targets: Sequence[int], seed: int, mix: Callable[[Tensor, Tensor], Batch] | None) -> None:
        self.targets = torch.tensor(list(targets), dtype=torch.int64)
        self.seed = seed
        self.mix = mix

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: int | Key) -> Batch:
        """One image (C, H, W) and its class, neither mixed."""
        epoch, index = (0, key) if isinstance(key, int) else key
        return self.read(epoch, [index])[0], self.targets[index]

    def __getitems__(self, keys: Sequence[int | Key]) -> Batch:
        """Images (N, C, H, W), float32, normalised; targets (N,) int64, or (N, classes) float32 where mixed."""
        pairs = [(0, key) if isinstance(key, int) else key for key in keys]
        epoch, indices = pairs[0][0], [index for _, index in pairs]
        x, target = self.read(epoch, indices), self.targets[indices]
        if self.mix is None:
            return x, target
        with _seeded(self.seed, epoch, indices[0], 1):
            x, target = self.mix(x, target)
        return x, target.float()

    def read(self, epoch: int, indices: list[int]) -> Tensor:
        """The images (N, C, ...) of one epoch, augmented."""
        raise NotImplementedError


def as_is(batch: Any) -> Any:
    """For a loader of these: the images come as a batch already."""
    return batch


class TensorImages(_Images):
    """Images (N, C, H, W), or signals (N, C, L), that are in memory.

    Args:
        images: of any dtype; ``transform`` and ``finish`` say what becomes of it.
        targets: class indices.
        shift: images are shifted at random by up to so many pixels along both axes.
        fill: per channel, what moves in: the background's value; nothing: 0.
        flips: axes along which images are flipped at random, such as -1 for left and right.
        transform: of one image (C, ...), drawing from torch's random numbers, before it is shifted and flipped.
        finish: of a whole batch, at the end, such as the normalisation.
        seed: of everything random.
        mix: mixes a batch.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Sequence[int],
        *,
        shift: int = 0,
        fill: Sequence[float] | None = None,
        flips: Sequence[int] = (),
        transform: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        mix: Callable[[Tensor, Tensor], Batch] | None = None,
    ) -> None:
        super().__init__(targets, seed, mix)
        self.images = images
        self.shift, self.flips = shift, tuple(flips)
        self.transform, self.finish = transform, finish
        values = [0.0] * images.shape[1] if fill is None else list(fill)
        self.background = torch.tensor(values, dtype=images.dtype).view(1, -1, *[1] * (images.dim() - 2))

    def read(self, epoch: int, indices: list[int]) -> Tensor:
        x = self.images[indices]
        if self.transform is not None:
            with _seeded(self.seed, epoch, indices[0], 2):
                x = torch.stack([self.transform(image) for image in x])
        if self.shift:
            x = self._shifted(x, epoch, indices)
        if self.flips:
            table = np.random.default_rng((self.seed, epoch, 3)).random((len(self), len(self.flips)))[indices] < 0.5
            for axis, flip in zip(self.flips, torch.from_numpy(table).T, strict=True):
                x = torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(axis), x)
        return x if self.finish is None else self.finish(x)

    def _shifted(self, x: Tensor, epoch: int, indices: list[int]) -> Tensor:
        # One table for the epoch: a draw then depends on neither the batch nor the worker.
        rng = np.random.default_rng((self.seed, epoch))
        table = torch.from_numpy(rng.integers(0, 2 * self.shift + 1, size=(len(self), 2)))[indices]
        height, width = x.shape[-2:]
        padded = F.pad(x - self.background, (self.shift,) * 4) + self.background
        rows = (table[:, 0, None] + torch.arange(height))[:, None, :, None]
        columns = (table[:, 1, None] + torch.arange(width))[:, None, None, :]
        channel = torch.arange(x.shape[1])[None, :, None, None]
        return padded[torch.arange(len(x))[:, None, None, None], channel, rows, columns]


class FolderImages(_Images):
    """Image files, read when asked for, each through ``transform`` (PIL image in RGB -> (3, H, W)).

    With ``in_chans=1`` the image is turned to grey first and the first of its three equal channels is kept.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[int],
        transform: Callable[[Image.Image], Any],
        *,
        in_chans: int = 3,
        seed: int = 0,
        mix: Callable[[Tensor, Tensor], Batch] | None = None,
    ) -> None:
        super().__init__(targets, seed, mix)
        self.paths = list(paths)
        self.transform = transform
        self.in_chans = in_chans

    def read(self, epoch: int, indices: list[int]) -> Tensor:
        return torch.stack([self._read_one(epoch, index) for index in indices])

    def _read_one(self, epoch: int, index: int) -> Tensor:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = (file if self.in_chans == 3 else file.convert("L")).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"can't read the image {path}: {error}") from error
        with _seeded(self.seed, epoch, index):
            return torch.as_tensor(self.transform(image))[: self.in_chans]


class EpochShuffle(Sampler[Key]):
    """The images of a training epoch in an order that depends on (seed, epoch); yields (epoch, index).

    ``epoch`` tells the number of the epoch that begins, whenever an iteration begins.
    """

    def __init__(self, length: int, seed: int, epoch: Callable[[], int]) -> None:
        self.length = length
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch()
        order = np.random.default_rng((self.seed, epoch, self.length)).permutation(self.length)
        return iter([(epoch, int(index)) for index in order])
