import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

from icnets.data.check.checks import ShardFile, read_shard
from icnets.data.check.decode import Item
from icnets.data.check.problems import Problem
from icnets.data.shards import split_key


def archive(path: Path, *members: tuple[str, bytes]) -> bytes:
    """Writes a shard, and gives its bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


class Content(NamedTuple):
    items: list[Item]
    problems: list[Problem]


def read(path: Path) -> Content:
    before = sorted(path.parent.iterdir())
    content = Content(*read_shard(ShardFile(path.name, path, "train")))
    assert sorted(path.parent.iterdir()) == before  # nothing is unpacked
    return content


def kinds(content: Content) -> list[tuple[str, str]]:
    return [(problem.path.partition(":")[2], problem.kind) for problem in content.problems]


def test_keys() -> None:
    assert split_key("0001.jpg") == ("0001", "jpg")
    assert split_key("a.b/0001.Seg.PNG") == ("a.b/0001", "seg.png")
    assert split_key("a/none") == ("a/none", "")


def test_samples(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    archive(
        path,
        *[("a/1.jpg", b"one"), ("a/1.cls", b" 07\n"), ("a/1.txt", b"a caption")],
        *[("a/2.json", b'{"label": 3, "more": []}'), ("a/2.webp", b"two")],
    )
    content = read(path)
    assert content.problems == []
    assert [(i.name, i.label, i.read()) for i in content.items] == [
        ("s.tar:a/1.jpg", "7", b"one"),
        ("s.tar:a/2.webp", "3", b"two"),
    ]


@pytest.mark.parametrize("extension", ["cls", "json"])
@pytest.mark.parametrize(
    "text", ["", "cat", "-1", "1.0", "²", "true", '{"label": true}', '{"label": -1}', '{"label": 1.0}', "[" * 100_000]
)
def test_bad_labels(tmp_path: Path, extension: str, text: str) -> None:
    archive(tmp_path / "s.tar", ("1.jpg", b"one"), (f"1.{extension}", text.encode()))
    content = read(tmp_path / "s.tar")
    assert kinds(content) == [(f"1.{extension}", "bad-label")]
    assert [item.label for item in content.items] == [None]


def test_partners_are_neighbours(tmp_path: Path) -> None:
    archive(tmp_path / "s.tar", ("1.jpg", b"one"), ("2.jpg", b"two"), ("1.cls", b"0"), ("2.cls", b"0"))
    assert kinds(read(tmp_path / "s.tar")) == [(f"{n}", "no-partner") for n in ("1.jpg", "2.jpg", "1.cls", "2.cls")]


def test_repeated_keys(tmp_path: Path) -> None:
    sample = [("1.jpg", b"one"), ("1.cls", b"0")]
    archive(tmp_path / "s.tar", *sample, ("2.jpg", b"two"), ("2.cls", b"0"), *sample)
    assert kinds(read(tmp_path / "s.tar")) == [("1.jpg", "repeated-key")]


@pytest.mark.parametrize("name", ["/etc/1.jpg", "../1.jpg", "a/../../1.jpg", "..\\1.jpg"])
def test_unsafe_names(tmp_path: Path, name: str) -> None:
    archive(tmp_path / "s.tar", (name, b"one"), ("2.jpg", b"two"), ("2.cls", b"0"))
    content = read(tmp_path / "s.tar")
    assert [problem.kind for problem in content.problems] == ["unsafe-name"]
    assert [item.name for item in content.items] == ["s.tar:2.jpg"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    content = read(tmp_path / "s.tar")
    assert kinds(content) == [("1.jpg", "link")]
    assert content.items == []


def test_every_cut_and_every_damaged_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    whole = archive(path, ("1.jpg", b"x" * 700), ("1.cls", b"0"), ("2.jpg", b"y" * 700), ("2.cls", b"1"))
    end = 2 * (512 + 1024 + 512 + 512)
    assert not whole[end:].strip(b"\0")
    for length in [0, 1, *range(100, end, 100), *range(512, end + 1, 512)]:
        path.write_bytes(whole[:length])
        content = read(path)
        assert kinds(content) == [("", "shard-damaged")], length
        assert {item.name for item in content.items} <= {"s.tar:1.jpg", "s.tar:2.jpg"}
    for header in (0, 1536, 2560, 4096):
        path.write_bytes(whole[: header + 10] + b"?" + whole[header + 11 :])
        assert kinds(read(path)) == [("", "shard-damaged")], header
    path.write_bytes(b"no archive at all" * 100)
    assert kinds(read(path)) == [("", "shard-damaged")]
