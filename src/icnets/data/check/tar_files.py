"""A tar shard in the WebDataset layout, read member by member; nothing is unpacked.

A sample is a run of neighbours ``KEY.jpg`` (or another image) and ``KEY.cls``, the class index as text, or
``KEY.json`` with {"label": index}. Other members of a key are left alone.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from icnets.data.check.decode import Item
from icnets.data.check.problems import Problem, printable
from icnets.data.shards import LONGEST_LABEL, class_index, is_image, leads_out, meant, require_end, split_key

__all__ = ["Shard", "ShardContent", "read_shard"]

_LABELS = ("cls", "json")


@dataclass(frozen=True)
class Shard:
    """A shard: what it is called in reports, where it is, and its split."""

    name: str
    path: Path
    split: str


@dataclass
class ShardContent:
    """The images of a shard, each with its class, and what is wrong beyond them."""

    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_shard(shard: Shard) -> ShardContent:
    """The samples of a shard, from its headers and labels; images aren't read yet."""
    content = ShardContent()
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    try:
        with tarfile.open(shard.path, "r:") as tar:
            for member in tar:
                if _is_safe(shard, member, content.problems):
                    members.append((member, _label_bytes(tar, member)))
            require_end(tar)
        damage = None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        damage = Problem(shard.name, "shard-damaged", " ".join(str(error).split()) or type(error).__name__)
    groups = [list(group) for _, group in groupby(members, key=lambda pair: split_key(pair[0].name)[0])]
    if damage is not None:
        content.problems.append(damage)
        groups = groups[:-1]  # where it breaks off, nothing can be said of the last sample
    seen: set[str] = set()
    for group in groups:
        _read_sample(shard, group, seen, content)
    return content


def _is_safe(shard: Shard, member: tarfile.TarInfo, problems: list[Problem]) -> bool:
    name = f"{shard.name}:{printable(member.name)}"
    if leads_out(member.name):
        problems.append(Problem(name, "unsafe-name", "leads out of its folder"))
        return False
    if member.isfile() or member.isdir():
        return member.isfile()
    what = f"a link to {printable(member.linkname)}" if member.issym() or member.islnk() else "a device or the like"
    problems.append(Problem(name, "link", what))
    return False


def _label_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member that holds a class; nothing for the others."""
    if split_key(member.name)[1] not in _LABELS or member.size > LONGEST_LABEL:
        return b""
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _read_sample(
    shard: Shard, group: list[tuple[tarfile.TarInfo, bytes]], seen: set[str], content: ShardContent
) -> None:
    def report(member: tarfile.TarInfo, kind: str, reason: str) -> None:
        content.problems.append(Problem(f"{shard.name}:{printable(member.name)}", kind, reason))

    key = split_key(group[0][0].name)[0]
    by_extension = [(split_key(member.name)[1], member, data) for member, data in group]
    wanted = meant([extension for extension, _, _ in by_extension if is_image(extension)])
    images = [member for extension, member, _ in by_extension if extension in wanted]
    labels = [entry for kind in _LABELS for entry in by_extension if entry[0] == kind]
    label = None
    if labels:
        try:
            label = str(class_index(labels[0][0], labels[0][2]))
        except ValueError as error:
            report(labels[0][1], "bad-label", str(error))
    for member in images[1:] if key not in seen else images:
        report(member, "repeated-key", f"key {printable(key)} has an image already")
    if images and not labels:
        report(images[0], "no-partner", "no .cls or .json beside the image")
    elif labels and not images:
        report(labels[0][1], "no-partner", "no image beside the class")
    elif not images:
        report(group[0][0], "not-image", "neither image nor class")
    seen.update([key] if images else [])
    content.items.extend(_items(shard, images, label))


def _items(shard: Shard, images: list[tarfile.TarInfo], label: str | None) -> Iterator[Item]:
    for member in images:
        name = f"{shard.name}:{printable(member.name)}"
        yield Item(name, str(shard.path), shard.split, label, offset=member.offset_data, size=member.size)
