"""Every image of a data set decoded as training would: what can't be read, is misfiled, double or left out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from icnets.data.folders import class_names, split_folders
from icnets.data.image_files import LeftOut, Paths, decode, images_below, left_out_line, reason, without_warnings
from icnets.support.processes import end_with_parent
from icnets.support.text import printable

# Kind: its severity, and what it means. An error stops a training or makes it silently wrong; a warning works.
KINDS: dict[str, tuple[str, str]] = {
    "unreadable": ("error", "files that are no image, a damaged one, or one that training refuses"),
    "empty-class": ("error", "classes without images"),
    "class-difference": ("error", "classes that are not in every split"),
    "duplicate-class": ("error", "the same file in two classes"),
    "duplicate-split": ("error", "the same file in two splits"),
    "duplicate": ("warning", "the same file twice in one class of a split"),
    "ignored": ("warning", "files in class folders that training doesn't read"),
}
_TOGETHER = 64  # files of a folder that one process decodes at a time


class Problem(NamedTuple):
    """One thing that is wrong: where (relative to the data set), one of ``KINDS``, and the details."""

    path: str
    kind: str
    reason: str


class Report(NamedTuple):
    """All problems, sorted by path and kind; the number of images by split, and of their classes."""

    problems: list[Problem]
    images: dict[str, int]
    classes: int


class _Group(NamedTuple):
    """Images of a class of a split that are decoded together."""

    source: Paths
    split: str
    label: str


def check(root: Path, workers: int, progress: Callable[[int, int], None] = lambda *_: None) -> Report:
    """Look through the data set in ``root``; nothing in it is changed.

    Args:
        root: DIR/train, DIR/val (and DIR/test), or class folders in DIR.
        workers: processes that decode.
        progress: is told now and then how many images are done, and how many there are.

    Raises:
        ValueError: the folder is missing, or holds no class folders; or a process that decodes died.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: give one with train/ and val/, or with class folders")
    problems: list[Problem] = []
    groups = _folders(root, problems)
    images: Counter[str] = Counter()
    for group in groups:
        images[group.split] += len(group.source)
    first: dict[str, tuple[str, str, str]] = {}
    done = 0
    for group, found in zip(groups, _inspected(groups, workers), strict=True):
        for name, why, digest in found:
            other, its_label, its_split = first.setdefault(digest, (name, group.label, group.split))
            kinds = {"unreadable": True}
            if why is None:
                why = f"same bytes as {other}"
                kinds = {"duplicate-class": group.label != its_label, "duplicate-split": group.split != its_split}
                kinds["duplicate"] = name != other and not any(kinds.values())
            problems += [Problem(name, kind, why) for kind, holds in kinds.items() if holds]
        done += len(found)
        progress(done, images.total())
    problems = [Problem(*(printable(text.replace(f"{root}/", "")) for text in each)) for each in problems]
    return Report(sorted(problems), dict(images), len({group.label for group in groups}))


def _folders(root: Path, problems: list[Problem]) -> list[_Group]:
    folders = split_folders(root) or {"all": root}
    labels = {split: class_names(folder) for split, folder in folders.items()}
    if not any(labels.values()):
        raise ValueError(f"{root} holds no class folders; give the folder that does")
    groups: list[_Group] = []
    for split, label in ((split, label) for split, names in labels.items() for label in names):
        folder, left_out = folders[split] / label, LeftOut()
        paths = images_below(folder, left_out)
        chunks = [paths[start : start + _TOGETHER] for start in range(0, len(paths), _TOGETHER)]
        groups += [_Group(Paths(chunk), split, label) for chunk in chunks]
        if not paths:
            problems.append(Problem(str(folder), "empty-class", "no images"))
        if said := left_out_line(left_out):
            problems.append(Problem(str(folder), "ignored", said))
        for other in folders:
            if label not in labels[other] and "train" in (split, other):
                problems.append(Problem(str(folder), "class-difference", f"there is no {folders[other] / label}"))
    return groups


# In processes of their own.


def _inspected(groups: list[_Group], workers: int) -> Iterator[list[tuple[str, str | None, str]]]:
    """Decode the images of each group: the name of each, why it can't be read (or None), a digest of its bytes."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent)
    try:
        yield from pool.map(_inspect, [group.source for group in groups])
    except BrokenProcessPool as error:
        what = "a process that decodes images died, perhaps for want of memory"
        raise ValueError(f"{what}; --workers 1 takes the least of it") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect(source: Paths) -> list[tuple[str, str | None, str]]:
    found: list[tuple[str, str | None, str]] = []
    for index in range(len(source)):
        try:
            with without_warnings():
                decode(source.open(index))
            digest = hashlib.blake2b(source.open(index).read_bytes()).hexdigest()
            found.append((source.name(index), None, digest))
        except Exception as error:  # decoders raise whatever they stumble over
            found.append((source.name(index), reason(error), ""))
    return found
