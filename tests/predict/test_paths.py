import os
from pathlib import Path

import pytest

from icnets.predict.paths import find_paths, shown, written


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/b/2.JPG", "a/b/notes.md", "a/.hidden.png", "a/[x].png", "single.weird"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def names(*given: str) -> list[str]:
    return [path.as_posix() for path in find_paths(given)]


def test_files_folders_and_patterns() -> None:
    assert names("single.weird", "a") == ["single.weird", "a/1.png", "a/[x].png", "a/b/2.JPG"]
    assert names("a/[x].png") == ["a/[x].png"]  # what exists is no pattern
    assert names("a/*") == ["a/1.png", "a/[x].png", "a/b/2.JPG"]
    assert sorted(names("a/**")) == ["a/1.png", "a/[x].png", "a/b/2.JPG"]
    assert names("**/*.JPG") == ["a/b/2.JPG"]


def test_lists() -> None:
    odd = os.fsencode("caf").join([b"", b"\xe9.png"])
    Path("l.txt").write_bytes(b"\xef\xbb\xbfa/1.png\r\n\n#no comment.png\n" + odd + b"\n")
    assert find_paths(["l.txt"]) == [Path("a/1.png"), Path("#no comment.png"), Path(os.fsdecode(odd))]
    Path("l.csv").write_text('label,Path\ncat,"x,y\nz.png"\ndog,a/1.png\nbird\n')
    assert names("l.csv") == ["x,y\nz.png", "a/1.png"]
    Path("plain.csv").write_text("a/1.png,3\na/1.png,4\n")
    assert names("plain.csv") == ["a/1.png", "a/1.png"]  # row by row, as the list has them


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "names no files"), (b'path\n"a', "no CSV file"), (b"path\n", "names no files"), (b"a\0b\n", "")],
)
def test_bad_lists(content: bytes, message: str) -> None:
    Path("bad.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.csv.*{message}"):
        find_paths(["bad.csv"])


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("pipe.png")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find_paths(["pipe.png"])


def test_names_as_text() -> None:
    path = Path(os.fsdecode(b"a\n\xff\x1b\xc3\xa9"))
    assert written(path) == "a\n\\xff\x1bé"
    assert shown(path) == "a\\n\\xff\\x1bé"
