"""Images for training: scikit-learn's handwritten digits, or one's own folder of class folders."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader

from icnets.messages import few
from icnets.training.images import (
    EpochShuffle,
    FolderImages,
    Listing,
    TensorImages,
    as_is,
    find_images,
    require_readable,
    split_folders,
    take,
)

__all__ = ["ImageData"]

_DIGITS_TEST = 797  # of 1,797 images; 1,000 are left for training and validation
_DIGITS_TEST_SEED = 0  # the test images are the same whatever the seed of a run
_DIGITS_MEAN, _DIGITS_STD = 0.3053, 0.3760  # of all 1,797 images, on the scale from 0 to 1
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageData(L.LightningDataModule):
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
        image_size: height and width in pixels that the network sees; 8 for the digits, 224 for a folder.
        in_chans: 1 (grey) or 3 (colour); 1 for the digits, 3 for a folder.
        mean: per channel, on the scale from 0 to 1; the digits' own, or ImageNet's for a folder.
        std: per channel, on the scale from 0 to 1; likewise.
        batch_size: images per step.
        workers: processes that read images; 0 reads them in the main process, which is faster for small images.
        seed: of splits, order and augmentation.
        shift: digits: largest random shift, in pixels of the 8x8 image.
        min_scale: folder: smallest part of an image's area that a random crop keeps.
        hflip: folder: probability of a horizontal flip.
        color_jitter: folder: strength of colour jitter; 0 for none.
        auto_augment: folder: timm's description of RandAugment, AutoAugment or AugMix, e.g. rand-m9-mstd0.5.
        erase: folder: probability of erasing a random rectangle.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, one of the two is drawn for each batch.
        mix_smoothing: label smoothing of mixed targets, which a loss takes as they are.
        predict_root: folder of images, with or without subfolders, for predict; without it, the test images.
        check_limit: folders of at most this many images have each image's header read before training starts.

    Raises:
        ValueError: for an argument out of its range; by ``setup``, for a folder that can't be used.
    """

    def __init__(
        self,
        root: Path | None = None,
        train_size: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        image_size: int | None = None,
        in_chans: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
        shift: int = 1,
        min_scale: float = 0.35,
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        erase: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_smoothing: float = 0.0,
        predict_root: Path | None = None,
        check_limit: int = 20_000,
    ) -> None:
        super().__init__()
        self.root = None if root is None else Path(root)
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.train_size, self.val_fraction, self.test_fraction = train_size, val_fraction, test_fraction
        self.image_size = image_size if image_size is not None else (8 if root is None else 224)
        self.in_chans = in_chans if in_chans is not None else (1 if root is None else 3)
        self.mean, self.std = self._normalization(mean, std)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.shift, self.min_scale, self.hflip, self.color_jitter = shift, min_scale, hflip, color_jitter
        self.auto_augment, self.erase = auto_augment, erase
        self.mixup, self.cutmix, self.mix_smoothing = mixup, cutmix, mix_smoothing
        self.check_limit = check_limit
        self._names: list[str] = []
        self._splits: dict[str, FolderImages | TensorImages] = {}
        self._epochs = count()
        self._check_arguments()

    def _normalization(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans is {self.in_chans}; images are read with 1 (grey) or 3 (colour) channels")
        if self.root is None:
            known: tuple[tuple[float, ...], ...] = ((_DIGITS_MEAN,) * self.in_chans, (_DIGITS_STD,) * self.in_chans)
        elif self.in_chans == 3:
            known = _IMAGENET
        else:
            known = tuple((sum(values) / 3,) for values in _IMAGENET)
        result = []
        for name, given, default in (("mean", mean, known[0]), ("std", std, known[1])):
            values = default if given is None else tuple(float(v) for v in given)
            if len(values) != self.in_chans:
                raise ValueError(f"{name} has {len(values)} values for {self.in_chans} channels; give one per channel")
            result.append(values)
        if min(result[1]) <= 0:
            raise ValueError(f"std is {result[1]}; it must be positive")
        return result[0], result[1]

    def _check_arguments(self) -> None:
        for name, low in (
            ("train_size", 1), ("image_size", 1), ("batch_size", 1), ("workers", 0), ("seed", 0), ("shift", 0),
            ("color_jitter", 0), ("mixup", 0), ("cutmix", 0), ("check_limit", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")
        for name in ("hflip", "erase", "min_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("val_fraction", "test_fraction", "mix_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        if self.val_fraction == 0 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}: "
                "validation needs images, and their sum must be less than 1"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size is {self.batch_size}; mixup and cutmix pair images, so make it even")

    # What a network needs to know of its data; read from the folder when first asked for.

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their order is that of the network's outputs."""
        self.setup()
        return self._names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def size(self, split: str) -> int:
        """Number of images in "train", "val" or "test"."""
        self.setup()
        return len(self._splits[split])

    def setup(self, stage: str | None = None) -> None:
        """Find, check and split the images (once, whatever the stage).

        Raises:
            ValueError: missing folder, no class folders, an empty class, too few images, images that can't be read,
                or training and validation folders with different classes.
        """
        if not self._splits:
            if self.root is None:
                self._setup_digits()
            else:
                self._setup_folder(self.root)
        if stage == "predict" and self.predict_root is not None and "predict" not in self._splits:
            listing = find_images(self.predict_root, classes=False)
            self._require_readable([listing])
            self._splits["predict"] = self._folder_split(listing, training=False)

    def _setup_digits(self) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        targets: list[int] = labels.tolist()
        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        images = torch.cat([(images - m) / s for m, s in zip(self.mean, self.std, strict=True)], dim=1)
        test, pool = take(targets, _DIGITS_TEST, _DIGITS_TEST_SEED)
        train, val = self._train_and_val([targets[i] for i in pool])
        self._names = [str(digit) for digit in range(10)]
        for name, indices in (("train", [pool[i] for i in train]), ("val", [pool[i] for i in val]), ("test", test)):
            x, shift = images[indices], self.shift if name == "train" else 0
            if self.image_size != 8:
                x = F.interpolate(x, size=self.image_size, mode="bilinear", antialias=True)
                shift = round(shift * self.image_size / 8)
            self._splits[name] = TensorImages(
                x,
                [targets[i] for i in indices],
                shift=shift,
                fill=[-m / s for m, s in zip(self.mean, self.std, strict=True)],
                seed=self.seed,
                mix=self._mix() if name == "train" else None,
            )

    def _setup_folder(self, root: Path) -> None:
        listings = _split_folders(root)
        if "train" not in listings:
            everything = listings.pop("all")
            _require_per_class(everything, 3 if self.test_fraction else 2, root)
            wanted = max(len(everything.class_names), round(self.test_fraction * len(everything.paths)))
            test, rest = take(everything.targets, wanted if self.test_fraction else 0, self.seed, leave=2)
            listings["train"] = _subset(everything, rest)
            if test:
                listings["test"] = _subset(everything, test)
        pool = listings["train"]
        if "val" not in listings:
            _require_per_class(pool, 2, root)
            train, val = self._train_and_val(pool.targets)
            listings["train"], listings["val"] = _subset(pool, train), _subset(pool, val)
        elif self.train_size is not None and self.train_size < len(pool.paths):
            listings["train"] = _subset(pool, take(pool.targets, self.train_size, self.seed)[0])
        listings.setdefault("test", listings["val"])
        self._names = pool.class_names
        self._require_readable([listings[name] for name in ("train", "val", "test")])
        self._splits = {name: self._folder_split(item, training=name == "train") for name, item in listings.items()}

    def _train_and_val(self, targets: Sequence[int]) -> tuple[list[int], list[int]]:
        """Positions of the training images and, disjoint, of the validation images."""
        classes = len(set(targets))
        val, rest = take(targets, max(classes, round(self.val_fraction * len(targets))), self.seed, leave=1)
        size = len(rest) if self.train_size is None else self.train_size
        if not classes <= size <= len(rest):
            raise ValueError(
                f"train_size is {size}, but {len(rest)} images are left beside {len(val)} for validation, "
                f"and {classes} classes need at least {classes}"
            )
        return [rest[i] for i in take([targets[i] for i in rest], size, self.seed)[0]], val

    def _require_readable(self, listings: Sequence[Listing]) -> None:
        paths = sorted({path for listing in listings for path in listing.paths})
        if len(paths) <= self.check_limit:
            require_readable(paths)

    def _folder_split(self, listing: Listing, *, training: bool) -> FolderImages:
        return FolderImages(
            listing.paths,
            listing.targets,
            self._transform(training),
            in_chans=self.in_chans,
            seed=self.seed,
            mix=self._mix() if training else None,
        )

    def _transform(self, training: bool) -> Any:
        try:
            return create_transform(
                self.image_size,
                is_training=training,
                scale=(self.min_scale, 1.0),
                hflip=self.hflip,
                color_jitter=self.color_jitter,
                auto_augment=self.auto_augment,
                re_prob=self.erase,
                mean=(self.mean * 3)[:3],
                std=(self.std * 3)[:3],
                crop_pct=0.95,
                normalize=True,
            )
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}; timm understands e.g. rand-m9-mstd0.5, augmix-m3 or original"
            ) from error

    def _mix(self) -> Mixup | None:
        if not (self.mixup or self.cutmix):
            return None
        return Mixup(self.mixup, self.cutmix, label_smoothing=self.mix_smoothing, num_classes=len(self._names))

    def _epoch(self) -> int:
        """The epoch that begins: the trainer's; without a trainer, a count of the iterations."""
        return next(self._epochs) if self.trainer is None else int(self.trainer.current_epoch)

    def _loader(self, split: str, sampler: EpochShuffle | None = None) -> DataLoader[Any]:
        images = self._splits[split]
        size = min(self.batch_size, len(images))
        if sampler is not None and images.mix is not None:
            size -= size % 2
        return DataLoader(
            images,
            batch_size=size,
            sampler=sampler,
            # A last batch of one image has no batch statistics; what is dropped changes from epoch to epoch.
            drop_last=sampler is not None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=as_is,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target): x (N, C, H, W) float32; target (N,) int64, or (N, classes) float32 where mixed."""
        self.setup()
        return self._loader("train", EpochShuffle(len(self._splits["train"]), self.seed, self._epoch))

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target), not augmented, in a fixed order."""
        self.setup()
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target), not augmented, in a fixed order."""
        self.setup()
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target) of ``predict_root``, all targets 0, or of the test images."""
        self.setup("predict")
        return self._loader("predict" if "predict" in self._splits else "test")

    def predict_names(self) -> list[str]:
        """A name for each image of ``predict_dataloader``, in its order: its path, or its number among the digits."""
        self.setup("predict")
        images = self._splits["predict" if "predict" in self._splits else "test"]
        return (
            [str(p) for p in images.paths] if isinstance(images, FolderImages) else [str(i) for i in range(len(images))]
        )


def _subset(listing: Listing, indices: Sequence[int]) -> Listing:
    return Listing([listing.paths[i] for i in indices], [listing.targets[i] for i in indices], listing.class_names)


def _require_per_class(listing: Listing, least: int, root: Path) -> None:
    for index, name in enumerate(listing.class_names):
        found = listing.targets.count(index)
        if found < least:
            raise ValueError(
                f"class {name!r} of {root} has {found} image{'s' * (found > 1)}: each split needs one, {least} in all"
            )


def _split_folders(root: Path) -> dict[str, Listing]:
    """Listings by split, or of "all" where the folder has none; splits must have the classes of the training set."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: data.root must hold train/ and val/, or one folder per class")
    folders = split_folders(root)
    if not folders:
        return {"all": find_images(root)}
    listings = {split: find_images(folder) for split, folder in folders.items()}
    known = listings["train"].class_names
    for split, listing in listings.items():
        missing = sorted(set(known) - set(listing.class_names))
        extra = sorted(set(listing.class_names) - set(known))
        if missing or extra:
            parts = [
                f"{verb} {few([repr(name) for name in c])}" for verb, c in (("lacks", missing), ("adds", extra)) if c
            ]
            raise ValueError(f"{root / split} has other classes than {root / 'train'}: it {' and '.join(parts)}")
    return listings
