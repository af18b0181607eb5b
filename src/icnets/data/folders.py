"""Folders whose subfolders are the classes: finding their images, checking them, drawing splits."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnets.data.image_files import LeftOut, images_below, left_out_line
from icnets.support.text import counted, few, tell

_SPLITS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}
_LIKE_SPLITS = {name: split for split, names in _SPLITS.items() for name in names}
_LIKE_SPLITS |= {"training": "train", "dev": "val", "eval": "val", "testing": "test"}


class Listing(NamedTuple):
    """Images of a folder of class folders: sorted paths, the class index of each, and the class names."""

    paths: list[Path]
    targets: list[int]
    class_names: list[str]


def split_folders(root: Path) -> dict[str, Path]:
    """Find the folders of "train", "val" and "test"; none if ``root`` has no train/.

    Raises:
        ValueError: others are named like splits (Train/, validation/ without train/, testing/): they would be taken for
            classes, or be passed over.
    """
    names = class_names(root)
    # Of several names of a split, the first counts, which comes last here.
    found = {split: root / name for split, usual in _SPLITS.items() for name in reversed(usual) if name in names}
    folders = found if "train" in found else {}
    like = {n: split for n in names if (split := _LIKE_SPLITS.get(n.lower())) is not None and split not in folders}
    if like and (folders or len(set(like.values())) > 1 or len(like) == len(names)):
        what = f"{root} has {few([f'{name}/' for name in like])}, named like splits, not like classes"
        raise ValueError(f"{what}; splits are called train/, val/ and test/, and train/ must be there")
    return folders


def class_names(folder: Path) -> list[str]:
    """List the subfolders of a folder, sorted, without hidden ones (.NAME) and macOS's own."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "__MACOSX")


def find_images(folder: Path, *, classes: bool = True) -> Listing:
    """List a folder whose subfolders are the classes; with ``classes=False``, any folder of images, all of class 0.

    One line tells which files were left out.

    Raises:
        ValueError: the folder is missing, has no class folders, or one of these holds no image or
            has a name that is no UTF-8.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one whose subfolders are the classes")
    names, left_out = class_names(folder) if classes else [""], LeftOut()
    if strange := [ascii(name) for name in names if os.fsencode(name).decode("utf-8", "replace") != name]:
        what = f"the names of {len(strange)} class folders of {folder} are no UTF-8"
        raise ValueError(f"{what}: {few(strange)}; rename them")
    if classes and len(names) < 2:
        found = f"{len(names) or 'no'} class folder{'s' * (len(names) != 1)}"
        raise ValueError(f"{folder} has {found}: classification needs 2 or more, each with the images of one class")
    per_class = [images_below(folder / name, left_out) for name in names]
    said = left_out_line(left_out)
    if empty := [repr(name) for name, paths in zip(names, per_class, strict=True) if not paths]:
        where = f"class folder{'s' * (len(empty) > 1)} {few(empty)} of {folder}" if classes else str(folder)
        raise ValueError(f"no images (.jpg, .png, .webp, ...) in {where}{'; ' * bool(said)}{said}")
    if said:
        tell(f"{folder}: {said}")
    targets = [i for i, paths in enumerate(per_class) for _ in paths]
    return Listing([p for paths in per_class for p in paths], targets, names if classes else [])


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
        what = f"cannot draw {count} images from {len(labels)} in {len(groups)} classes"
        raise ValueError(f"{what}, leaving {leave} of each")
    quota = np.clip(np.floor(share).astype(int), np.minimum(low, high), high)
    # Adjust the classes furthest from their quota by what rounding left over, or took too much.
    while (missing := np.sign(count - quota.sum())) != 0:
        gap = np.where(quota < high if missing > 0 else quota > low, (share - quota) * missing, -np.inf)
        quota[int(np.argmax(gap))] += missing
    drawn = np.sort(np.concatenate([g[:q] for g, q in zip(groups, quota, strict=True)]))
    return drawn.tolist(), np.setdiff1d(np.arange(len(labels)), drawn).tolist()


def train_and_val(
    targets: Sequence[int], train_size: int | None, val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Draw the positions of the training images and, disjoint, of the validation images, class by class.

    Raises:
        ValueError: there are not ``train_size`` images for training.
    """
    classes = len(set(targets))
    val, rest = take(targets, max(classes, round(val_fraction * len(targets))), seed, leave=1)
    size = len(rest) if train_size is None else train_size
    if not classes <= size <= len(rest):
        left = f"{len(rest)} images are left beside {len(val)} for validation"
        raise ValueError(f"train_size is {size}, but {left}, and {classes} classes need at least {classes}")
    return [rest[i] for i in take([targets[i] for i in rest], size, seed)[0]], val


def folder_splits(
    root: Path, train_size: int | None, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Listing]:
    """List the images of train, val and test in a folder; see :class:`icnets.data.data_module.ImageData`.

    Raises:
        ValueError: no folder, too few images of a class, or splits with other classes than the training set's.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: data.root must hold train/ and val/, or one folder per class")
    folders = split_folders(root)
    listings = {split: find_images(folder) for split, folder in (folders or {"train": root}).items()}
    pool = listings["train"]
    for split, listing in listings.items():
        known, names = set(pool.class_names), set(listing.class_names)
        differences = {"lacks": known - names, "adds": names - known}
        if parts := [f"{verb} {few(sorted(map(repr, each)))}" for verb, each in differences.items() if each]:
            raise ValueError(f"{root / split} has other classes than {root / 'train'}: it {' and '.join(parts)}")
    least = 1 + ("val" not in listings) + bool(test_fraction and not folders)  # of each class: one for every split
    counts = Counter(pool.targets)
    for i, name in enumerate(pool.class_names):
        if counts[i] < least:
            what = f"class {name!r} of {root} has {counted(counts[i], 'image')}"
            raise ValueError(f"{what}: each split needs one, {least} in all")
    if test_fraction and not folders:
        wanted = max(len(pool.class_names), round(test_fraction * len(pool.paths)))
        test, rest = take(pool.targets, wanted, seed, leave=2)
        listings["test"], pool = _subset(pool, test), _subset(pool, rest)
    if "val" not in listings:
        train, val = train_and_val(pool.targets, train_size, val_fraction, seed)
        listings["train"], listings["val"] = _subset(pool, train), _subset(pool, val)
    elif train_size is not None and train_size < len(pool.paths):
        listings["train"] = _subset(pool, take(pool.targets, train_size, seed)[0])
    listings.setdefault("test", listings["val"])
    return listings


def _subset(listing: Listing, indices: Sequence[int]) -> Listing:
    return Listing([listing.paths[i] for i in indices], [listing.targets[i] for i in indices], listing.class_names)
