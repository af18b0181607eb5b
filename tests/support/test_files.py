import json
import stat
from pathlib import Path

import pytest

import icnets
from icnets.support.files import atomic_write, remove_unfinished, write_json


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # the same file system
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "numbers.json"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".best.ckpt.0badcafe.tmp", ".tmpIvyF5q"):  # the second as safetensors writes
        (tmp_path / name).touch()
    for name in ("best.ckpt", ".tmp-notes", "a.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-notes", "a.tmp", "best.ckpt"]


def test_a_checkpoint_may_be_read_by_whom_any_file_may(tmp_path):
    (tmp_path / "any").touch()
    icnets.save(icnets.ICLinear(2, 2), tmp_path / "m.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("any", "m.safetensors")]
    assert modes[0] == modes[1]


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json({"name": "bee é", "counts": [1, 2]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "bee é", "counts": [1, 2]}
    with pytest.raises(TypeError):
        write_json({"counts": {1, 2}}, path)
    assert json.loads(path.read_text(encoding="utf-8"))["counts"] == [1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
