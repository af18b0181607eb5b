import subprocess
import sys
from pathlib import Path

import pytest

from icnets.support.named_code import imported, names_code


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    "text", ["resnet18", "resnet18.a1_in1k", "hf-hub:me/net", "timm:resnet50.a2_in1k", "a.py", ":A"]
)
def test_other_names_are_no_code(text: str) -> None:
    assert not names_code(text)
    with pytest.raises(ValueError, match=r"names no code; write it as module:name or file\.py:name"):
        imported(text)


def test_a_file_is_imported_once_and_finds_what_lies_beside_it() -> None:
    Path("a").mkdir()
    Path("a/beside_it.py").write_text("width = 3\n")
    Path("a/net.py").write_text("import beside_it\nclass Net:\n    width = beside_it.width\n    class Inner: ...\n")
    net = imported("a/net.py:Net")
    assert net.width == 3
    assert imported("./a/net.py:Net") is net
    assert imported("a/net.py:Net.Inner") is net.Inner
    assert sys.modules[net.__module__].Net is net


def test_files_of_one_name_are_two_modules() -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "net.py").write_text(f"def net(): return {folder!r}\n")
    assert (imported("a/net.py:net")(), imported("b/net.py:net")()) == ("a", "b")


def test_a_module_of_the_working_folder() -> None:
    Path("nets_of_mine").mkdir()
    Path("nets_of_mine/small.py").write_text("def make(): return 5\n")
    assert imported("nets_of_mine.small:make")() == 5


def test_a_process_of_its_own_does_it_by_the_text_alone() -> None:
    Path("net.py").write_text("def net(): return 7\n")
    code = (
        "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        "from icnets.support.named_code import imported\n"
        "def call(text): return imported(text)()\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "        print(pool.submit(call, 'net.py:net').result())\n"
    )
    Path("main.py").write_text(code)
    assert subprocess.run([sys.executable, "main.py"], check=True, capture_output=True, text=True).stdout == "7\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py:Net", r"none.py:Net can't be imported: FileNotFoundError: .*none\.py"),
        ("no_such_module:Net", "no_such_module:Net can't be imported: ModuleNotFoundError: No module named"),
        ("math:gdc", "math:gdc can't be imported: AttributeError: module 'math' has no attribute 'gdc'"),
        ("broken.py:Net", "broken.py:Net can't be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    Path("broken.py").write_text("1 / 0\n")
    for _ in range(2):  # what failed to be imported isn't half there
        with pytest.raises(ValueError, match=message):
            imported(text)
