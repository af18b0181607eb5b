"""From where the images are said to be, to the images of each split and the names of the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icnets.data.folders import folder_splits
from icnets.data.shards import Shards, expand, find_shards
from icnets.data.sources import Paths, Source
from icnets.support.files import cache_folder

_CHOSEN: Any = None  # an option that is None is chosen by the images
Located = dict[str, tuple[Source, Sequence[int]]]  # of each split, the images and their classes


@dataclass(eq=False, repr=False)
class ImageOptions:
    """The options of :class:`icnets.data.data_module.ImageData`, and from them the images of each split."""

    root: Path | None = None
    train_size: int | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    train_shards: str | None = None
    val_shards: str | None = None
    max_unreadable: int | None = None
    cache: Path | None = None
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
        self.root, self.cache = (None if path is None else Path(path) for path in (self.root, self.cache))

    @property
    def digits(self) -> bool:
        """Whether the images are scikit-learn's digits."""
        return self.root is None and self.train_shards is None

    def shards(self) -> dict[str, Shards]:
        """The shards of each split, by their patterns or found in ``root``; none where the images are elsewhere.

        Raises:
            ValueError: there are training shards, but none for validation; or a damaged shard.
        """
        names: dict[str, list[str]] = {}
        if self.train_shards is not None and self.val_shards is not None:
            names = {"train": expand(self.train_shards), "val": expand(self.val_shards)}
        elif self.root is not None and self.root.is_dir():
            names = {split: find_shards(self.root, split) for split in ("train", "val", "test")}
        if not names.get("train"):
            return {}
        if not names["val"]:
            raise ValueError(f"{self.root} has training shards but none for validation: val/*.tar or val*.tar")
        return {split: Shards(found, self.cache or cache_folder()) for split, found in names.items() if found}

    def locate(self) -> tuple[list[str], Located]:
        """Find the classes, in the order of their indices, and the images of "train", "val" and "test".

        Raises:
            ValueError: images or classes that can't be used.
        """
        if shards := self.shards():
            names = shard_classes(self.root, {split: found.targets for split, found in shards.items()})
            splits: Located = {split: (found, found.targets) for split, found in shards.items()}
            return names, {"test": splits["val"], **splits}
        assert self.root is not None
        parts = {"val_fraction": self.val_fraction, "test_fraction": self.test_fraction}
        listings = folder_splits(self.root, train_size=self.train_size, seed=self.seed, **parts)
        located: Located = {split: (Paths(listing.paths), listing.targets) for split, listing in listings.items()}
        return listings["train"].class_names, located


def shard_classes(root: Path | None, targets: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the classes of shards: by ``root``/classes.txt, one a line; without it, by their numbers.

    Raises:
        ValueError: a split has other classes.
    """
    listed = None if root is None else root / "classes.txt"
    if listed is not None and listed.is_file():
        names, known = listed.read_text(encoding="utf-8").splitlines(), f"{listed} lists"
    else:
        names, known = [str(i) for i in range(max(targets["train"]) + 1)], "the training shards have"
    for split, indices in targets.items():
        if (most := max(indices)) >= len(names):
            raise ValueError(f"the {split} shards have class {most}, but {known} 0 to {len(names) - 1}")
    return names
