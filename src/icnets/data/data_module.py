"""Images for training: scikit-learn's handwritten digits, folders, tar shards, or a Hugging Face dataset."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader

from icnets.data.epochs import LARGEST_BATCH, EpochData, default_batch
from icnets.data.folders import find_images, require_readable, take, train_and_val
from icnets.data.images import ImageFiles, Normalization, TensorImages
from icnets.data.protocol import INTERPOLATIONS, describe, multicrop
from icnets.data.shards import Shards
from icnets.data.sources import Paths, Source
from icnets.data.splits import Split, Splits, hugging_face_splits, image_folder_splits, shard_names, shard_splits
from icnets.support.files import cache_folder

__all__ = ["ImageData"]

_DIGITS_TEST = 797  # of 1,797 images; 1,000 are left for training and validation
_DIGITS_TEST_SEED = 0  # the test images are the same whatever the seed of a run
_DIGITS_MEAN, _DIGITS_STD = 0.3053, 0.3760  # of all 1,797 images, on the scale from 0 to 1
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
        image_size: height and width in pixels that the network sees; 8 for the digits, 224 for a folder.
        in_chans: 1 (grey) or 3 (colour); 1 for the digits, 3 for a folder.
        mean: per channel, on the scale from 0 to 1; the digits' own, or ImageNet's for a folder.
        std: per channel, on the scale from 0 to 1; likewise.
        batch_size: images per step of one process; by default 64, or the number from 8 on that leaves an epoch 20
            steps (of all processes, accumulated batches counted once).
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
        train_shards: tar shards in WebDataset's layout, as paths or URLs with braces: train-{000000..000146}.tar. Those
            in root (train/*.tar or train*.tar, val likewise) are found without.
        val_shards: likewise, for validation.
        shuffle_shards: so many shards, drawn at random, are shuffled together; 0 shuffles all images at once.
        hf: Hugging Face dataset, by its name on the hub or its local folder; needs the package datasets.
        hf_val: its split for validation and test.
        repeats: each image that an epoch draws comes so often in it, augmented differently (repeated augmentation).
        max_unreadable: so many images may be unreadable, and are skipped, before that is an error; one in a thousand
            of a split by default.
        eval_batch_size: images at a time in evaluation; batch_size by default, or 64.
        prefetch: batches that each worker reads ahead.
        cache: folder for what is kept of the data, such as where images lie in shards; ~/.cache/icnets, or where
            ICNETS_CACHE says.
        crop_pct: folder: side of what validation and test see, as a fraction of the image's shorter side.
        interpolation: folder: of resizing for validation and test: bilinear, bicubic, ...
        test_crops: folder: 1 (the centre), or 10 for test, whose probabilities are averaged.
        test_root: folder of other images to test on, one subfolder per class, or subfolders 0, 1, ... (ImageNetV2).
        real_labels: ImageNet-ReaL's real.json for test: a prediction is right if it is among an image's labels.

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
        batch_size: int | None = None,
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
        train_shards: str | None = None,
        val_shards: str | None = None,
        shuffle_shards: int = 64,
        hf: str | None = None,
        hf_val: str = "validation",
        repeats: int = 1,
        max_unreadable: int | None = None,
        eval_batch_size: int | None = None,
        prefetch: int = 2,
        cache: Path | None = None,
        crop_pct: float = 0.95,
        interpolation: str = "bilinear",
        test_crops: int = 1,
        test_root: Path | None = None,
        real_labels: Path | None = None,
    ) -> None:
        super().__init__()
        self.root = None if root is None else Path(root)
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.train_size, self.val_fraction, self.test_fraction = train_size, val_fraction, test_fraction
        self.digits = root is None and train_shards is None and hf is None
        self.image_size = image_size if image_size is not None else (8 if self.digits else 224)
        self.in_chans = in_chans if in_chans is not None else (1 if self.digits else 3)
        self.mean, self.std = self._normalization(mean, std)
        self._batch_size, self.workers, self.seed = batch_size, workers, seed
        self.shift, self.min_scale, self.hflip, self.color_jitter = shift, min_scale, hflip, color_jitter
        self.auto_augment, self.erase = auto_augment, erase
        self.mixup, self.cutmix, self.mix_smoothing = mixup, cutmix, mix_smoothing
        self.check_limit = check_limit
        self.train_shards, self.val_shards, self.shuffle_shards = train_shards, val_shards, shuffle_shards
        self.hf, self.hf_val = hf, hf_val
        self.repeats, self.max_unreadable = repeats, max_unreadable
        self.eval_batch_size = eval_batch_size if eval_batch_size is not None else batch_size or LARGEST_BATCH
        self.prefetch = prefetch
        self.cache = Path(cache) if cache is not None else cache_folder()
        self.crop_pct = crop_pct
        self.interpolation, self.test_crops = interpolation, test_crops
        self.test_root = None if test_root is None else Path(test_root)
        self.real_labels = None if real_labels is None else Path(real_labels)
        self._names: list[str] = []
        self._splits: dict[str, ImageFiles | TensorImages] = {}
        self._check_arguments()
        if self.digits:
            self.crop_pct = 1.0  # they are seen whole

    def _normalization(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans is {self.in_chans}; images are read with 1 (grey) or 3 (colour) channels")
        if self.digits:
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
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} is {values}; its values must be numbers, on the scale from 0 to 1")
        if min(result[1]) <= 0:
            raise ValueError(f"std is {result[1]}; it must be positive")
        return result[0], result[1]

    def _check_arguments(self) -> None:
        for name, low in (
            ("train_size", 1), ("image_size", 1), ("_batch_size", 1), ("workers", 0), ("seed", 0), ("shift", 0),
            ("color_jitter", 0), ("mixup", 0), ("cutmix", 0), ("check_limit", 0), ("shuffle_shards", 0), ("repeats", 1),
            ("max_unreadable", 0), ("eval_batch_size", 1), ("prefetch", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name.removeprefix('_')} is {value}; it must be at least {low}")
        for name in ("hflip", "erase", "min_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must be greater than 0 and at most 1")
        if self.test_crops not in (1, 10) or (self.digits and self.test_crops == 10):
            raise ValueError(f"test_crops is {self.test_crops}; it must be 1, or 10 for a folder of images")
        for name in ("val_fraction", "test_fraction", "mix_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        if self.val_fraction == 0 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}: "
                "validation needs images, and their sum must be less than 1"
            )
        if (self.train_shards is None) != (self.val_shards is None):
            raise ValueError("train_shards and val_shards go together; give both, or a root that holds both")
        if sum(given is not None for given in (self.root, self.train_shards, self.hf)) > 1:
            raise ValueError("root, train_shards and hf each name the images; give one of them")
        if (self.mixup or self.cutmix) and self._batch_size is not None and self._batch_size % 2:
            raise ValueError(f"batch_size is {self._batch_size}; mixup and cutmix pair images, so make it even")

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

    @property
    def batch_size(self) -> int:
        """Images per step of one process."""
        return self._batch_size or default_batch(self.size("train"), self.batches_per_step)

    def setup(self, stage: str | None = None) -> None:
        """Find, check and split the images (once, whatever the stage).

        Raises:
            ValueError: missing folder, no class folders, an empty class, too few images, images that can't be read,
                or training and validation folders with different classes.
        """
        if not self._splits:
            if self.digits:
                self._setup_digits()
            else:
                self._setup_images(self._locate())
        if stage == "predict" and self.predict_root is not None and "predict" not in self._splits:
            listing = find_images(self.predict_root, classes=False)
            self._require_readable([Paths(listing.paths)])
            self._splits["predict"] = self.image_files(listing.paths)

    def image_files(self, paths: Sequence[Path]) -> ImageFiles:
        """Image files of no known class, as validation and test see theirs."""
        return self._files(Split(Paths(paths), [0] * len(paths)), "predict")

    def prepare_data(self) -> None:
        """Reads where the images of shards lie, in one process of each machine, before the others ask for it."""
        for shards in shard_names(self.root, self.train_shards, self.val_shards).values():
            Shards(shards, self.cache)

    def _locate(self) -> Splits:
        if self.hf is not None:
            return hugging_face_splits(self.hf, self.hf_val)
        if shards := shard_names(self.root, self.train_shards, self.val_shards):
            return shard_splits(shards, self.root, self.cache)
        assert self.root is not None
        options = ("train_size", "val_fraction", "test_fraction", "seed", "test_root", "real_labels")
        return image_folder_splits(self.root, **{name: getattr(self, name) for name in options})

    def _setup_digits(self) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        targets: list[int] = labels.tolist()
        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        images = torch.cat([(images - m) / s for m, s in zip(self.mean, self.std, strict=True)], dim=1)
        test, pool = take(targets, _DIGITS_TEST, _DIGITS_TEST_SEED)
        train, val = train_and_val([targets[i] for i in pool], self.train_size, self.val_fraction, self.seed)
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

    def _setup_images(self, found: Splits) -> None:
        self._names = found.class_names
        self._require_readable([split.source for split in found.splits.values()])
        self._splits = {name: self._files(split, name) for name, split in found.splits.items()}

    def _require_readable(self, sources: Sequence[Source]) -> None:
        paths = sorted({path for source in sources if isinstance(source, Paths) for path in source.paths})
        if len(paths) <= self.check_limit and not self.max_unreadable:
            require_readable(paths)

    def _files(self, split: Split, name: str) -> ImageFiles:
        training = name == "train"
        limit = len(split.source) // 1000 if self.max_unreadable is None else self.max_unreadable
        crops = name == "test" and self.test_crops > 1
        itself = crops or (training and self.erase > 0)  # normalises, at its own place
        return ImageFiles(
            split.source,
            split.targets,
            multicrop(self) if crops else self._transform(training, normalize=itself),
            finish=None if itself else Normalization(self.mean, self.std),
            in_chans=self.in_chans,
            seed=self.seed,
            mix=self._mix() if training else None,
            training=training,
            max_unreadable=0 if name == "predict" else limit,
        )

    def _transform(self, training: bool, normalize: bool) -> Any:
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
                crop_pct=self.crop_pct,
                interpolation="bilinear" if training else self.interpolation,
                normalize=normalize,
            )
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}; timm understands e.g. rand-m9-mstd0.5, augmix-m3 or original"
            ) from error

    def protocol(self) -> str:
        """One line that says how the test images are evaluated."""
        self.setup()
        return describe(self, self.size("test"))

    def _mix(self) -> Mixup | None:
        if not (self.mixup or self.cutmix):
            return None
        return Mixup(self.mixup, self.cutmix, label_smoothing=self.mix_smoothing, num_classes=len(self._names))

    def unreadable(self) -> list[str]:
        """Names of the images, so far found by this process, that can't be read."""
        found = {id(s): s for s in self._splits.values() if isinstance(s, ImageFiles)}
        return [images.name(index) for images in found.values() for index in images.unreadable.indices]

    def names_of_batch(self, epoch: int, batch: int) -> list[str]:
        """What this process reads for a batch of training: names of the images, in order."""
        self.setup()
        images = self._splits["train"]
        return [images.name(key[1]) for key in self._order().batch(epoch, batch)]

    def _order(self) -> Any:
        images = self._splits["train"]
        groups = getattr(getattr(images, "source", None), "groups", ())
        return self.epoch_batches(
            images, self.batch_size, self.seed, repeats=self.repeats, groups=groups, window=self.shuffle_shards
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """This process's batches: x (N, C, H, W) float32; target (N,) int64, or (N, classes) float32 where mixed."""
        self.setup()
        return self.loader(self._splits["train"], self._order(), workers=self.workers, prefetch=self.prefetch)

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        images = self._splits[split]
        batches = self.evaluation_batches(images, self.eval_batch_size)
        return self.loader(images, batches, workers=self.workers, prefetch=self.prefetch)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target), not augmented, in a fixed order; target -1 for what evaluation leaves out.

        That is what can't be read and, with several processes, what evens out their batches.
        """
        self.setup()
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Like ``val_dataloader``, of the test images."""
        self.setup()
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches (x, target) of ``predict_root``, all targets 0, or of the test images."""
        self.setup("predict")
        images = self._splits["predict" if "predict" in self._splits else "test"]
        size = min(self.eval_batch_size, len(images))
        return self.loader(images, size, workers=self.workers, prefetch=self.prefetch)

    def predict_names(self) -> list[str]:
        """A name for each image of ``predict_dataloader``, in its order: its path, or its number among the digits."""
        self.setup("predict")
        images = self._splits["predict" if "predict" in self._splits else "test"]
        return [images.name(i) for i in range(len(images))]
