"""Every image of a data set decoded, every shard read: a report that doesn't depend on who decoded what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from icnets.data.check.decode import Inspection, Item, inspect
from icnets.data.check.find import Found, find
from icnets.data.check.problems import Problem
from icnets.data.check.tar_files import Shard, read_shard
from icnets.data.check.workers import each
from icnets.support.text import few

__all__ = ["Report", "check"]

_ORDER = ["train", "val", "test", "all"]


class Progress(Protocol):
    """Hears how many images there are, and of each that is done, with the problems found in it."""

    def begin(self, total: int) -> None: ...

    def done(self, problems: int) -> None: ...


@dataclass(frozen=True)
class Report:
    """All problems, sorted by path and kind; the number of images by split, of classes, and of shards."""

    problems: list[Problem]
    images: dict[str, int]
    classes: int
    shards: int

    def count(self, severity: str) -> int:
        """Number of problems of "error" or "warning"."""
        return sum(problem.severity == severity for problem in self.problems)


def check(root: Path, workers: int, progress: Progress, min_size: int = 0) -> Report:
    """Look through the data set in ``root``; nothing in it is changed, and no shard is unpacked.

    Args:
        root: see :func:`icnets.data.check.find.find`.
        workers: processes that decode.
        progress: is told of every image.
        min_size: the side in pixels below which an image is small.

    Raises:
        ValueError: the folder is missing, or is no data set.
    """
    found = find(root)
    items, problems = list(found.items), list(found.problems)
    with closing(each(read_shard, found.shards, workers)) as contents:
        for index, content in sorted(contents, key=lambda pair: pair[0]):
            if content is None:
                problems.append(Problem(found.shards[index].name, "crash", "the process that read it died"))
            else:
                items += content.items
                problems += content.problems
    items.sort(key=lambda item: (_ORDER.index(item.split) if item.split in _ORDER else len(_ORDER), item.name))
    inspections = _inspect(items, workers, progress, min_size)
    for item, inspection in zip(items, inspections, strict=True):
        problems += [Problem(item.name, kind, reason) for kind, reason in inspection.found]
    problems += _duplicates(items, inspections)
    problems += _missing_labels(items, found.shards)
    return _report(found, items, problems)


def _inspect(items: Sequence[Item], workers: int, progress: Progress, min_size: int) -> list[Inspection]:
    progress.begin(len(items))
    inspections = [Inspection([("crash", "the process that decoded it died")])] * len(items)
    function: Callable[[Item], Inspection] = partial(inspect, min_size=min_size)
    with closing(each(function, items, workers)) as results:
        for index, result in results:
            if result is not None:
                inspections[index] = result
            progress.done(len(inspections[index].found))
    return inspections


def _duplicates(items: Sequence[Item], inspections: Sequence[Inspection]) -> Iterator[Problem]:
    """Of every further file with the same bytes, in the order of ``items``, what sets it apart from the first."""
    first: dict[bytes, Item] = {}
    for item, inspection in zip(items, inspections, strict=True):
        if inspection.digest is None:
            continue
        other = first.setdefault(inspection.digest, item)
        if other is item:
            continue
        kinds = []
        if item.label != other.label and None not in (item.label, other.label):
            kinds.append("duplicate-class")
        if item.split != other.split:
            kinds.append("duplicate-split")
        for kind in kinds or ["duplicate"]:
            yield Problem(item.name, kind, f"same bytes as {other.name}")


def _missing_labels(items: Iterable[Item], shards: Sequence[Shard]) -> Iterator[Problem]:
    """Class indices of shards: those that training lacks, whether below the largest or among the other splits'."""
    paths = {shard.name for shard in shards}
    labels: dict[str, set[str]] = {}
    for item in items:
        if item.label is not None and item.name.partition(":")[0] in paths:
            labels.setdefault(item.split, set()).add(item.label)
    training = "train" if "train" in labels else "all"
    known = labels.get(training, set())
    if known:
        largest = max(map(int, known))
        if missing := largest + 1 - len(known):
            gaps = [str(i) for i in range(min(largest, len(known) + 4)) if str(i) not in known]
            yield Problem(
                f"{training} shards",
                "empty-class",
                f"{missing} of the classes 0 to {largest} have no image: {few(gaps[:missing])}",
            )
    for split in sorted(labels.keys() - {training}):
        for label in sorted(labels[split] - known, key=int):
            yield Problem(f"{split} shards", "class-difference", f"class {label} is not in the {training} shards")


def _report(found: Found, items: Sequence[Item], problems: Iterable[Problem]) -> Report:
    real = [item for item in items if item.listed]
    images = Counter(item.split for item in real)
    folders = {name for names in found.classes.values() for name in names}
    labels = {item.label for item in real if item.label is not None} | folders
    return Report(
        [problem for problem, _ in groupby(sorted(problems))],
        {split: images[split] for split in _ORDER if split in images},
        len(labels),
        len(found.shards),
    )
