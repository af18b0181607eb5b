"""From where the images are said to be, to the images of each split and the names of the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from icnets.data.folders import folder_splits
from icnets.data.protocol import find_test_images, read_real_labels
from icnets.data.shards import Shards, expand, find_shards
from icnets.data.sources import HuggingFace, Paths, Source

__all__ = ["Split", "Splits", "hugging_face_splits", "image_folder_splits", "shard_names", "shard_splits"]


@dataclass(frozen=True)
class Split:
    """Images and their classes: indices, or for ImageNet-ReaL ``(N, classes)`` bool."""

    source: Source
    targets: Sequence[int] | Tensor


@dataclass(frozen=True)
class Splits:
    """The splits "train", "val" and "test", and the classes in the order of their indices."""

    class_names: list[str]
    splits: dict[str, Split]


def image_folder_splits(
    root: Path,
    *,
    train_size: int | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    test_root: Path | None = None,
    real_labels: Path | None = None,
) -> Splits:
    """Of a folder of class folders; see :class:`icnets.data.data_module.ImageData`."""
    listings = folder_splits(
        root, train_size=train_size, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
    )
    names = listings["train"].class_names
    if test_root is not None:
        listings["test"] = find_test_images(test_root, names)
    splits = {name: Split(Paths(listing.paths), listing.targets) for name, listing in listings.items()}
    if real_labels is not None:
        paths = listings["test"].paths
        splits["test"] = Split(Paths(paths), read_real_labels(real_labels, paths, len(names)))
    return Splits(names, splits)


def shard_names(root: Path | None, train: str | None, val: str | None) -> dict[str, list[str]]:
    """Shards by split, from patterns or found in ``root``; none at all where the images are elsewhere.

    Raises:
        ValueError: there are training shards, but none for validation.
    """
    if train is not None and val is not None:
        return {"train": expand(train), "val": expand(val)}
    if root is None or not root.is_dir():
        return {}
    found = {split: find_shards(root, split) for split in ("train", "val", "test")}
    if not found["train"]:
        return {}
    if not found["val"]:
        raise ValueError(f"{root} has training shards but none for validation: val/*.tar or val*.tar")
    return {split: names for split, names in found.items() if names}


def shard_splits(shards: Mapping[str, Sequence[str]], root: Path | None, cache: Path) -> Splits:
    """Of tar shards. ``root/classes.txt`` names the classes, one a line; without it, they are called by their numbers.

    Raises:
        ValueError: a damaged shard, or a class that training doesn't have.
    """
    sources = {split: Shards(names, cache) for split, names in shards.items()}
    listed = None if root is None else root / "classes.txt"
    if listed is not None and listed.is_file():
        names, known = listed.read_text(encoding="utf-8").splitlines(), f"{listed} lists"
    else:
        names, known = [str(i) for i in range(max(sources["train"].targets) + 1)], "the training shards have"
    for split, source in sources.items():
        if (most := max(source.targets)) >= len(names):
            raise ValueError(f"the {split} shards have class {most}, but {known} 0 to {len(names) - 1}")
    splits = {split: Split(source, source.targets) for split, source in sources.items()}
    return Splits(names, {"test": splits["val"], **splits})


def hugging_face_splits(name: str, val: str) -> Splits:
    """Of a Hugging Face dataset; ``val`` is its split for validation and test."""
    train, other = HuggingFace(name, "train"), HuggingFace(name, val)
    tested = Split(other, other.targets)
    return Splits(train.class_names, {"train": Split(train, train.targets), "val": tested, "test": tested})
