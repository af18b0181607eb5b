"""Every image of a data set decoded, every shard read: a report that doesn't depend on who decoded what."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from icnets.data.check.decode import Checked, Item, inspect
from icnets.data.check.problems import Problem, printable
from icnets.data.check.workers import each
from icnets.data.folders import class_names, split_folders
from icnets.data.image_files import images_below
from icnets.data.shards import read_members, read_sample
from icnets.support.text import few

_ORDER = ["train", "val", "test", "all"]
_PREFIXES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Report:
    """All problems, sorted by path and kind; the number of images by split, of classes, and of shards."""

    problems: list[Problem]
    images: dict[str, int]
    classes: int
    shards: int

    def count(self, severity: str) -> int:
        """Return the number of problems of "error" or "warning"."""
        return sum(problem.severity == severity for problem in self.problems)


class ShardFile(NamedTuple):
    """A shard: what it is called in reports, where it is, and its split."""

    name: str
    path: Path
    split: str


@dataclass
class _Found:
    """Images and shards to look into, the class folders by split, and what is wrong with them."""

    items: list[Item] = field(default_factory=list)
    shards: list[ShardFile] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def check(
    root: Path, workers: int, min_size: int = 0, progress: Callable[[int, int, int], None] = lambda *_: None
) -> Report:
    """Look through the data set in ``root``; nothing in it is changed, and no shard is unpacked.

    Args:
        root: DIR/train, DIR/val (and DIR/test), or class folders in DIR; and tar shards in any of these.
        workers: processes that decode.
        min_size: the side in pixels below which an image is small.
        progress: is told of every image how many are done, how many there are, and the problems found so far.

    Raises:
        ValueError: the folder is missing, or holds neither class folders nor shards.
    """
    found = _find(root)
    with closing(each(read_shard, found.shards, workers)) as contents:
        for index, content in contents:
            if content is None:
                found.problems.append(Problem(found.shards[index].name, "crash", "the process that read it died"))
            else:
                found.items += content[0]
                found.problems += content[1]
    found.items.sort(key=lambda item: (_ORDER.index(item.split) if item.split in _ORDER else len(_ORDER), item.name))
    inspections = _inspect(found.items, workers, min_size, progress)
    for item, inspection in zip(found.items, inspections, strict=True):
        found.problems += [Problem(item.name, kind, reason) for kind, reason in inspection.found]
    found.problems += [*_duplicates(found.items, inspections), *_missing_labels(found)]
    listed = [item for item in found.items if item.listed]
    images = Counter(item.split for item in listed)
    labels = {item.label for item in listed}.union(*found.classes.values()) - {None}
    problems = [problem for problem, _ in groupby(sorted(found.problems))]
    return Report(problems, {s: images[s] for s in _ORDER if s in images}, len(labels), len(found.shards))


# What there is.


def _find(root: Path) -> _Found:
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a folder: give one with train/ and val/, with class folders, or with tar shards"
        )

    def name(path: Path) -> str:
        return printable(path.relative_to(root).as_posix())

    def shards(folder: Path, split: str) -> list[ShardFile]:
        paths = sorted(p for p in folder.glob("*.tar") if p.is_file() and not p.name.startswith("."))
        # Where the folder is of no split, the names tell: train-000000.tar.
        return [
            ShardFile(name(p), p, _PREFIXES.get(p.name.partition("-")[0], "all") if split == "all" else split)
            for p in paths
        ]

    def unlisted(paths: Iterable[Path], split: str, label: str | None) -> list[Item]:
        return [Item(name(p), str(p), split, label, listed=False) for p in sorted(paths)]

    found, splits = _Found(), split_folders(root)
    folders = splits or {"all": root}
    for split, folder in folders.items():
        found.shards += shards(folder, split)
        if (names := class_names(folder)) and (split != "all" or not found.shards):
            found.classes[split] = names
        for label in found.classes.get(split, []):
            listed = images_below(folder / label)
            if not listed:
                found.problems.append(Problem(name(folder / label), "empty-class", "no images"))
            found.items += [Item(name(p), str(p), split, printable(label)) for p in listed]
            found.items += unlisted(set(_files(folder / label)) - set(listed), split, printable(label))
    found.shards += shards(root, "all") if splits else []
    if not found.classes and not found.shards:
        raise ValueError(f"{root} holds neither class folders nor tar shards; give the folder that does")
    inside = {folders[split] / label for split, labels in found.classes.items() for label in labels}
    for folder in {root, *folders.values()}:
        beside = [p for p in folder.iterdir() if not p.name.startswith(".") and p not in {*inside, *folders.values()}]
        paths = [p for path in beside for p in (_files(path) if path.is_dir() else [path] if path.is_file() else [])]
        found.items += unlisted((p for p in paths if p.suffix != ".tar"), "none", None)
    for split, labels in found.classes.items() if found.classes.get("train") else ():
        for label in sorted(set(labels) ^ set(found.classes["train"])):
            has, lacks = (folders[s] / label for s in (("train", split) if label not in labels else (split, "train")))
            found.problems.append(Problem(name(has), "class-difference", f"there is no {name(lacks)}"))
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if not p.name.startswith(".") and (p.is_symlink() or p.is_file()))


def read_shard(shard: ShardFile) -> tuple[list[Item], list[Problem]]:
    """Read the samples of a shard from its headers and labels; images aren't read yet.

    A sample is a run of neighbours ``KEY.jpg`` (or another image) and ``KEY.cls`` or ``KEY.json``; other members of a
    key are left alone.
    """
    members, found = read_members(str(shard.path))
    samples = [list(group) for _, group in groupby(members, key=lambda member: member.key)]
    if any(kind == "shard-damaged" for _, kind, _ in found):
        samples = samples[:-1]  # where it breaks off, nothing can be said of the last sample
    items: list[Item] = []
    seen: set[str] = set()
    for sample in samples:
        images, label, wrong = read_sample(sample)
        if images and sample[0].key in seen:
            wrong.append((images[0].info.name, "repeated-key", f"key {sample[0].key} has an image already"))
        seen.update(image.key for image in images)
        found += wrong
        for info, *_ in images:
            name, text = f"{shard.name}:{printable(info.name)}", None if label is None else str(label)
            place = Item(name, str(shard.path), shard.split, text, offset=info.offset_data, size=info.size)
            items.append(place)
    where = {name: f"{shard.name}:{printable(name)}" if name else shard.name for name, _, _ in found}
    return items, [Problem(where[name], kind, printable(reason)) for name, kind, reason in found]


# What is wrong with it.


def _inspect(
    items: Sequence[Item], workers: int, min_size: int, progress: Callable[[int, int, int], None]
) -> list[Checked]:
    inspections = [Checked([("crash", "the process that decoded it died")])] * len(items)
    problems = 0
    progress(0, len(items), 0)
    with closing(each(partial(inspect, min_size=min_size), items, workers)) as results:
        for done, (index, result) in enumerate(results, start=1):
            inspections[index] = result or inspections[index]
            problems += len(inspections[index].found)
            progress(done, len(items), problems)
    return inspections


def _duplicates(items: Sequence[Item], inspections: Sequence[Checked]) -> Iterator[Problem]:
    """Of every further file with the same bytes, in the order of ``items``, what sets it apart from the first."""
    first: dict[bytes, Item] = {}
    for item, (_, digest) in zip(items, inspections, strict=True):
        other = item if digest is None else first.setdefault(digest, item)
        if other is item:
            continue
        kinds = []
        if item.label != other.label and None not in (item.label, other.label):
            kinds.append("duplicate-class")
        if item.split != other.split:
            kinds.append("duplicate-split")
        for kind in kinds or ["duplicate"]:
            yield Problem(item.name, kind, f"same bytes as {other.name}")


def _missing_labels(found: _Found) -> Iterator[Problem]:
    """Class indices of shards: those that training lacks, whether below the largest or among the other splits'."""
    paths = {str(shard.path) for shard in found.shards}
    labels: dict[str, set[int]] = {}
    for item in found.items:
        if item.label is not None and item.path in paths:
            labels.setdefault(item.split, set()).add(int(item.label))
    training = "train" if "train" in labels else "all"
    known = labels.get(training, set())
    if known and (missing := max(known) + 1 - len(known)):
        gaps = [str(i) for i in range(min(max(known), len(known) + 4)) if i not in known]
        reason = f"{missing} of the classes 0 to {max(known)} have no image: {few(gaps[:missing])}"
        yield Problem(f"{training} shards", "empty-class", reason)
    for split in sorted(labels.keys() - {training}):
        for label in sorted(labels[split] - known):
            yield Problem(f"{split} shards", "class-difference", f"class {label} is not in the {training} shards")
