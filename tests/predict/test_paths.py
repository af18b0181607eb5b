import os
from pathlib import Path

import pytest

from icnets.data.image_files import written
from icnets.predict.inference import find_paths, shown


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/b/2.JPG", "a/b/notes.md", "a/.hidden.png", "a/[x].png", "single.weird"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def names(*given: str) -> list[str]:
    return [path.as_posix() for path in find_paths(given)]


def test_files_and_folders() -> None:
    assert names("single.weird", "a") == ["single.weird", "a/1.png", "a/[x].png", "a/b/2.JPG"]
    assert names("a/[x].png") == ["a/[x].png"]


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("pipe.png")
    with pytest.raises(ValueError, match="there is no file or folder"):
        find_paths(["pipe.png"])


def test_names_as_text() -> None:
    path = Path(os.fsdecode(b"a\n\xff\x1b\xc3\xa9"))
    assert written(path) == "a\n\\xff\x1bé"
    assert shown(path) == "a\\n\\xff\\x1bé"
