"""Every image of a data set decoded as training would: what can't be read, is misfiled, double or left out."""

import hashlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from icnets.data.folders import class_names, split_folders
from icnets.data.image_files import LeftOut, decode, images_below, left_out_line, reason, without_warnings
from icnets.data.shards import Shards, find_shards
from icnets.data.sources import Paths, Source
from icnets.data.splits import shard_classes
from icnets.support.processes import end_with_parent
from icnets.support.text import printable

# Kind: its severity, and what it means. An error stops a training or makes it silently wrong; a warning works.
KINDS: dict[str, tuple[str, str]] = {
    "unreadable": ("error", "files that are no image, a damaged one, or one that training refuses"),
    "shard": ("error", "shards that training refuses"),
    "empty-class": ("error", "classes without images"),
    "class-difference": ("error", "classes that are not in every split"),
    "duplicate-class": ("error", "the same file in two classes"),
    "duplicate-split": ("error", "the same file in two splits"),
    "duplicate": ("warning", "the same file twice in one class of a split"),
    "ignored": ("warning", "files in class folders that training doesn't read"),
}
_CHUNK = 32  # images that a process is given at a time


class Problem(NamedTuple):
    """One thing that is wrong: where (relative to the data set), one of ``KINDS``, and the details."""

    path: str
    kind: str
    reason: str


class Report(NamedTuple):
    """All problems, sorted by path and kind; the number of images by split, of their classes, and of shards."""

    problems: list[Problem]
    images: dict[str, int]
    classes: int
    shards: int


class _Image(NamedTuple):
    """The number of an image's source, its index there, its split and its class."""

    source: int
    index: int
    split: str
    label: str


@dataclass
class _Found:
    """Images, the sources that they are in, and what is wrong, by whole paths."""

    images: list[_Image] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, source: Source, split: str, labels: Sequence[str]) -> None:
        self.images += [_Image(len(self.sources), i, split, label) for i, label in enumerate(labels)]
        self.sources.append(source)

    def wrong(self, where: object, kind: str, why: str) -> None:
        self.problems.append(Problem(str(where), kind, why))

    def name(self, image: _Image) -> str:
        return self.sources[image.source].name(image.index)


def check(root: Path, workers: int, progress: Callable[[int, int], None] = lambda *_: None) -> Report:
    """Look through the data set in ``root``; nothing in it is changed, and no shard is unpacked.

    Args:
        root: DIR/train, DIR/val (and DIR/test), or class folders in DIR; or tar shards in their place.
        workers: processes that decode.
        progress: is told of every image how many are done, and how many there are.

    Raises:
        ValueError: the folder is missing, or holds neither class folders nor shards; or a process that decodes died.
    """
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a folder: give one with train/ and val/, with class folders, or with tar shards"
        )
    found = _Found()
    shards = {split: find_shards(root, split) for split in ("train", "val", "test")}
    if not any(shards.values()) and not class_names(root):
        shards = {"all": find_shards(root, "")}
    if any(shards.values()):
        _list_shards(root, shards, found)
    elif class_names(root):
        _list_folders(root, found)
    else:
        raise ValueError(f"{root} holds neither class folders nor tar shards; give the folder that does")
    first: dict[str, _Image] = {}
    for done, (image, (why, digest)) in enumerate(_inspected(found, workers), start=1):
        progress(done, len(found.images))
        other = first.setdefault(digest, image)
        if why is not None:
            found.wrong(found.name(image), "unreadable", why)
        elif other is not image:
            kinds = {"duplicate-class": image.label != other.label, "duplicate-split": image.split != other.split}
            for kind in [kind for kind, differs in kinds.items() if differs] or ["duplicate"]:
                found.wrong(found.name(image), kind, f"same bytes as {found.name(other)}")
    problems = [Problem(*(printable(text.replace(f"{root}/", "")) for text in each)) for each in found.problems]
    images = Counter(image.split for image in found.images)
    classes = {image.label for image in found.images}
    return Report(sorted(problems), dict(images), len(classes), sum(map(len, shards.values())))


def _list_folders(root: Path, found: _Found) -> None:
    folders = split_folders(root) or {"all": root}
    labels = {split: class_names(folder) for split, folder in folders.items()}
    for split, label in ((split, label) for split, names in labels.items() for label in names):
        folder, left_out = folders[split] / label, LeftOut()
        paths = images_below(folder, left_out)
        found.add(Paths(paths), split, [label] * len(paths))
        if not paths:
            found.wrong(folder, "empty-class", "no images")
        if left_out.total():
            found.wrong(folder, "ignored", left_out_line(left_out))
        for other in folders:
            if label not in labels[other] and "train" in (split, other):
                found.wrong(folder, "class-difference", f"there is no {folders[other] / label}")


def _list_shards(root: Path, shards: dict[str, list[str]], found: _Found) -> None:
    targets: dict[str, list[int]] = {}
    for split, name in ((split, name) for split, names in shards.items() for name in names):
        try:
            source = Shards([name], cache=None)
        except ValueError as error:
            found.wrong(name, "shard", str(error))
            continue
        found.add(source, split, [str(target) for target in source.targets])
        targets.setdefault(split, []).extend(source.targets)
    if "train" in targets:
        try:
            shard_classes(root, targets)
        except ValueError as error:
            found.wrong(root, "class-difference", str(error))


# In processes of their own.


def _inspected(found: _Found, workers: int) -> Iterator[tuple[_Image, tuple[str | None, str]]]:
    """Decode the images; yield each with why it can't be read, or None and a digest of its bytes."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(found.sources,))
    done = -1
    try:
        for done, result in enumerate(pool.map(_inspect, found.images, chunksize=_CHUNK if workers > 1 else 1)):
            yield found.images[done], result
    except BrokenProcessPool as error:
        raise ValueError(
            f"a process that decodes images died at {found.name(found.images[done + 1])} or soon after it, perhaps for "
            "want of memory; --workers 1 takes the least, and names the very file"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_sources: Sequence[Source] = ()  # of this process


def _begin(sources: Sequence[Source]) -> None:
    global _sources
    _sources = sources
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    end_with_parent()


def _inspect(image: _Image) -> tuple[str | None, str]:
    source = _sources[image.source]
    try:
        with without_warnings():
            decode(source.open(image.index))
        found = source.open(image.index)
        with open(found, "rb") if isinstance(found, Path) else found as file:
            return None, hashlib.file_digest(file, "blake2b").hexdigest()
    except Exception as error:  # decoders raise whatever they stumble over
        return reason(error), ""
