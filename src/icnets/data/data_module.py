"""Images for training: scikit-learn's handwritten digits, or folders."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.transforms_factory import create_transform
from torch import Tensor

from icnets.data.epochs import LARGEST_BATCH, EpochData
from icnets.data.folders import Listing, folder_splits, take, train_and_val
from icnets.data.images import ImageFiles, Images, TensorImages, mixing
from icnets.data.protocol import evaluation_by
from icnets.support.text import counted, require_at_least

_CHOSEN: Any = None  # an option that is None is chosen by the images
_DIGITS_TEST = 797  # of 1,797 images; 1,000 are left for training and validation
_DIGITS_TEST_SEED = 0  # the test images are the same whatever the seed of a run


@dataclass(eq=False, repr=False)
class ImageData(EpochData):
    """Training, validation and test images.

    Everything random is drawn by ``seed`` (and epoch): the same seed gives the same images in the same order, however
    many workers read them.

    Args:
        root: folder of images: either DIR/train, DIR/val (and DIR/test), each with one subfolder per class, or one
            subfolder per class directly in DIR, which is then split at random, class by class. Without it,
            scikit-learn's 8x8 handwritten digits (embedded): 797 test images that never change, 1,000 for the rest.
        train_size: number of training images, drawn class by class; all that there are by default.
        val_fraction: part of the images that becomes the validation set where DIR/val is missing.
        test_fraction: part that becomes the test set where DIR has no splits (with DIR/train but no DIR/test, the
            validation images serve as test images).
        seed: of splits, order and augmentation.
        max_unreadable: so many images may be unreadable, and are skipped, before that is an error; one in a thousand
            of a split by default.
        shift: digits: largest random shift, in pixels of the 8x8 image.
        min_scale: folder: smallest part of an image's area that a random crop keeps.
        hflip: folder: probability of a horizontal flip.
        color_jitter: folder: strength of colour jitter; 0 for none.
        auto_augment: folder: timm's description of RandAugment, AutoAugment or AugMix, e.g. rand-m9-mstd0.5.
        erase: folder: probability of erasing a random rectangle.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, one of the two is drawn for each batch.
        mix_smoothing: label smoothing of mixed targets, which a loss takes as they are.
        repeats: each image that an epoch draws comes so often in it, augmented differently (repeated augmentation).
        image_size: height and width in pixels that the network sees; 8 for the digits, 224 for a folder.
        in_chans: 1 (grey) or 3 (colour); 1 for the digits, 3 for a folder.
        mean: per channel, on the scale from 0 to 1; the digits' own, or ImageNet's for a folder.
        std: per channel, on the scale from 0 to 1; likewise.
        batch_size: images per step of one process; by default 64, or the number from 8 on that leaves an epoch 20
            steps (of all processes, accumulated batches counted once).
        eval_batch_size: images at a time in evaluation; batch_size by default, or 64.
        workers: processes that read images; 0 reads them in the main process, which is faster for small images.
        crop_pct: folder: side of what validation and test see, as a fraction of the image's shorter side.
        interpolation: folder: of resizing for validation and test: bilinear, bicubic, ...

    Raises:
        ValueError: for an argument out of its range; by ``setup``, for a folder that can't be used.

    Example:
        >>> data = ImageData(train_size=300, image_size=16)
        >>> [data.size(split) for split in ("train", "val", "test")]
        [300, 150, 797]
        >>> images, classes = next(iter(data.val_dataloader()))
        >>> images.shape
        torch.Size([64, 1, 16, 16])
    """

    root: Path | None = None
    train_size: int | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    max_unreadable: int | None = None
    # How training varies them.
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
    # How they are read, and seen by evaluation.
    image_size: int = _CHOSEN
    in_chans: int = _CHOSEN
    mean: tuple[float, ...] = _CHOSEN
    std: tuple[float, ...] = _CHOSEN
    batch_size: int = _CHOSEN
    eval_batch_size: int = _CHOSEN
    workers: int = 0
    crop_pct: float = 0.95
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        super().__init__()
        self.root = None if self.root is None else Path(self.root)
        if self.eval_batch_size is None:
            self.eval_batch_size = self._batch_size or LARGEST_BATCH
        self._check_arguments()
        self.view = evaluation_by(vars(self), digits=self.root is None)
        for name, value in asdict(self.view).items():  # image_size, in_chans, ...: as chosen
            setattr(self, name, value)

    def _check_arguments(self) -> None:
        positive = dict.fromkeys(("train_size", "_batch_size", "repeats", "eval_batch_size"), 1)
        least = ("workers", "seed", "shift", "color_jitter", "mixup", "cutmix")
        require_at_least(self, **positive, **dict.fromkeys((*least, "max_unreadable"), 0))
        for name in ("hflip", "erase", "min_scale", "val_fraction", "test_fraction", "mix_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.val_fraction == 0 or self.val_fraction + self.test_fraction >= 1:
            parts = f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}"
            raise ValueError(f"{parts}: validation needs images, and their sum must be less than 1")
        if (self.mixup or self.cutmix) and self._batch_size is not None and self._batch_size % 2:
            raise ValueError(f"batch_size is {self._batch_size}; mixup and cutmix pair images, so make it even")

    def setup(self, stage: str | None = None) -> None:
        """Find, check and split the images (once, whatever the stage).

        Raises:
            ValueError: missing folder, no class folders, an empty class, too few images, images that can't be read,
                or training and validation folders with different classes.
        """
        if self._splits:
            return
        if self.root is None:
            self._names = [str(digit) for digit in range(10)]
            self._splits = self._digits()
        else:
            listings = folder_splits(self.root, self.train_size, self.val_fraction, self.test_fraction, self.seed)
            self._names = listings["train"].class_names
            self._splits = {split: self._files(found, split) for split, found in listings.items()}

    def _digits(self) -> dict[str, Images]:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        images = torch.cat([(images - m) / s for m, s in zip(self.mean, self.std, strict=True)], dim=1)
        if self.image_size != 8:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        test, pool = take(labels, _DIGITS_TEST, _DIGITS_TEST_SEED)
        train, val = train_and_val(labels[pool], self.train_size, self.val_fraction, self.seed)
        splits = {"train": [pool[i] for i in train], "val": [pool[i] for i in val], "test": test}
        return {s: TensorImages(images[chosen], labels[chosen], **self._varied(s)) for s, chosen in splits.items()}

    def _varied(self, split: str) -> dict[str, Any]:
        """The options of a split's images that make them random, in training."""
        if split != "train":
            return {"seed": self.seed}
        mix = mixing(self.mixup, self.cutmix, self.mix_smoothing, len(self._names))
        if self.root is not None:
            return {"seed": self.seed, "mix": mix, "training": True}
        black = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(-1, 1, 1)
        return {"seed": self.seed, "mix": mix, "shift": round(self.shift * self.image_size / 8), "fill": black}

    def _files(self, found: Listing, split: str) -> ImageFiles:
        transform = self._augmentation() if split == "train" else self.view
        allowed = len(found.paths) // 1000 if self.max_unreadable is None else self.max_unreadable
        options: dict[str, Any] = {"in_chans": self.in_chans, "max_unreadable": allowed, **self._varied(split)}
        return ImageFiles(found.paths, found.targets, transform, **options)

    def _augmentation(self) -> Callable[[Any], Tensor]:
        """Make the transform from a PIL image in RGB to the augmented input, of the view's size and statistics."""
        own: dict[str, Any] = {name: getattr(self, name) for name in ("hflip", "color_jitter", "auto_augment")}
        own |= {"scale": (self.min_scale, 1.0), "re_prob": self.erase, "interpolation": "bilinear"}
        try:
            return create_transform(self.image_size, is_training=True, **own, **self.view.statistics)
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            what = f"auto_augment is {self.auto_augment!r}"
            raise ValueError(f"{what}; timm understands e.g. rand-m9-mstd0.5, augmix-m3 or original") from error

    def protocol(self) -> str:
        """Say in one line how the test images are evaluated."""
        seen, where = self.view.describe(), f" {self.root},"
        if self.root is None:
            seen, where = f"handwritten digits, whole, {self.image_size} pixels", ""
        return f"protocol: {seen};{where} {counted(self.size('test'), 'image')}, one label an image"

    def unreadable(self) -> list[str]:
        """Name the images that can't be read, found so far by this process and those that read for it."""
        files = [images for images in self._splits.values() if isinstance(images, ImageFiles)]
        return list(dict.fromkeys(name for images in files for name in images.unreadable()))

    def names_of_batch(self, epoch: int, batch: int) -> list[str]:
        """Name the images that this process reads for a batch of training, in order."""
        return [self._splits["train"].name(key[1]) for key in self.train_batches().batch(epoch, batch)]


ImageData.batch_size = EpochData.batch_size  # type: ignore[assignment]  # the option, or what is chosen without
