"""What a folder holds: images by split and class, shards, and what lies where training doesn't look."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from icnets.data.check.decode import Item
from icnets.data.check.problems import Problem, printable
from icnets.data.check.tar_files import Shard
from icnets.data.folders import class_names, split_folders
from icnets.data.image_files import images_below

__all__ = ["Found", "find"]

_PREFIXES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Found:
    """Images and shards to look into, the class folders by split, and what their arrangement shows already."""

    items: list[Item] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def find(root: Path) -> Found:
    """List a data set: DIR/train, DIR/val (and DIR/test), or class folders in DIR; and tar shards in any of these.

    Raises:
        ValueError: the folder is missing, or holds neither class folders nor shards.
    """
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a folder: give one with train/ and val/, with class folders, or with tar shards"
        )
    found = Found()
    folders = split_folders(root) or {"all": root}
    if "all" not in folders:
        _outside(root, root, found, skip=set(folders.values()))
    for split, folder in folders.items():
        found.shards += _shards(root, folder, split)
        names = class_names(folder)
        if names and not (split == "all" and found.shards):
            found.classes[split] = names
        for name in found.classes.get(split, []):
            _class(root, folder / name, split, found)
        _outside(root, folder, found, skip={folder / name for name in found.classes.get(split, [])})
    if "all" not in folders:
        found.shards += _shards(root, root, "all")
    if not found.classes and not found.shards:
        raise ValueError(f"{root} holds neither class folders nor tar shards; give the folder that does")
    found.problems += _differences(root, folders, found.classes)
    return found


def _shards(root: Path, folder: Path, split: str) -> list[Shard]:
    """The tar files directly in a folder; where it is of no split, their names tell: train-000000.tar."""
    paths = sorted(p for p in folder.glob("*.tar") if p.is_file() and not p.name.startswith("."))
    prefixes = [_PREFIXES.get(p.name.partition("-")[0], "all") if split == "all" else split for p in paths]
    return [Shard(_name(root, path), path, prefix) for path, prefix in zip(paths, prefixes, strict=True)]


def _class(root: Path, folder: Path, split: str, found: Found) -> None:
    listed = images_below(folder)
    if not listed:
        found.problems.append(Problem(_name(root, folder), "empty-class", "no images"))
    label = printable(folder.name)
    found.items += [Item(_name(root, path), str(path), split, label) for path in listed]
    others = sorted(set(_files(folder)) - set(listed))
    found.items += [Item(_name(root, path), str(path), split, label, listed=False) for path in others]


def _outside(root: Path, folder: Path, found: Found, skip: set[Path]) -> None:
    """Files beside class folders, and beside splits, among which only images are of interest."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path in skip:
            continue
        inside = sorted(_files(path)) if path.is_dir() else [path] if path.is_file() and path.suffix != ".tar" else []
        found.items += [Item(_name(root, p), str(p), "none", None, listed=False) for p in inside if p.suffix != ".tar"]


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if not p.name.startswith(".") and (p.is_symlink() or p.is_file()))


def _differences(root: Path, folders: dict[str, Path], classes: dict[str, list[str]]) -> Iterator[Problem]:
    known = set(classes.get("train", []))
    for split, names in classes.items():
        if split in ("train", "all") or not known:
            continue
        for name in sorted(set(names) ^ known):
            lacks = name in known
            where = folders[split] if lacks else folders["train"]
            path = _name(root, folders["train" if lacks else split] / name)
            yield Problem(path, "class-difference", f"there is no {_name(root, where / name)}")


def _name(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())
