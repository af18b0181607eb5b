"""From where the images are said to be, to the images of each split and the names of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from icnets.data.folders import folder_splits, require_readable
from icnets.data.protocol import find_test_images, read_real_labels
from icnets.data.shards import Shards, expand, find_shards
from icnets.data.sources import HuggingFace, Paths, Source
from icnets.support.files import cache_folder

# Of each split, the images and their classes: indices, or for ImageNet-ReaL ``(N, classes)`` bool.
Located = dict[str, tuple[Source, Sequence[int] | Tensor]]


@dataclass(eq=False, repr=False)
class Sources:
    """The options of :class:`icnets.data.data_module.ImageData` that say which images there are."""

    root: Path | None = None
    train_size: int | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    check_limit: int = 20_000
    train_shards: str | None = None
    val_shards: str | None = None
    hf: str | None = None
    hf_val: str = "validation"
    max_unreadable: int | None = None
    cache: Path | None = None
    test_root: Path | None = None
    real_labels: Path | None = None

    def __post_init__(self) -> None:
        for name in ("root", "cache", "test_root", "real_labels"):
            if getattr(self, name) is not None:
                setattr(self, name, Path(getattr(self, name)))

    @property
    def digits(self) -> bool:
        """Whether the images are scikit-learn's digits."""
        return self.root is None and self.train_shards is None and self.hf is None

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
        if self.hf is not None:
            train, val = HuggingFace(self.hf, "train"), HuggingFace(self.hf, self.hf_val)
            tested = (val, val.targets)
            return train.class_names, {"train": (train, train.targets), "val": tested, "test": tested}
        if shards := self.shards():
            splits: Located = {split: (source, source.targets) for split, source in shards.items()}
            return self._classes_of(shards), {"test": splits["val"], **splits}
        return self._folders()

    def _classes_of(self, shards: dict[str, Shards]) -> list[str]:
        """From ``root/classes.txt``, one a line; without it, they are called by their numbers."""
        listed = None if self.root is None else self.root / "classes.txt"
        if listed is not None and listed.is_file():
            names, known = listed.read_text(encoding="utf-8").splitlines(), f"{listed} lists"
        else:
            names, known = [str(i) for i in range(max(shards["train"].targets) + 1)], "the training shards have"
        for split, source in shards.items():
            if (most := max(source.targets)) >= len(names):
                raise ValueError(f"the {split} shards have class {most}, but {known} 0 to {len(names) - 1}")
        return names

    def _folders(self) -> tuple[list[str], Located]:
        assert self.root is not None
        parts = {"val_fraction": self.val_fraction, "test_fraction": self.test_fraction}
        listings = folder_splits(self.root, train_size=self.train_size, seed=self.seed, **parts)
        names = listings["train"].class_names
        if self.test_root is not None:
            listings["test"] = find_test_images(self.test_root, names)
        splits: Located = {name: (Paths(listing.paths), listing.targets) for name, listing in listings.items()}
        if self.real_labels is not None:
            paths = listings["test"].paths
            splits["test"] = (Paths(paths), read_real_labels(self.real_labels, paths, len(names)))
        every = sorted({path for listing in listings.values() for path in listing.paths})
        if len(every) <= self.check_limit and not self.max_unreadable:
            require_readable(every)
        return names, splits
