"""Every command of the README and of docs/index.md, as it stands there, on 120 photographs.

They run one after the other in one folder, which holds ``photos`` (150 images a class) and ``new_photos``. Options are
appended that make them small, and weights, since timm would download its own. Those of the guides: test_guides.py.
"""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

import demo_photos
import icnets
from training.photographs import write_cells

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
# What a block may hold besides; each is tried where somebody installs, by .ci/run or by hand.
INSTALLS = re.compile(r"(pip (install|wheel) |git clone URL |make (demo|test)\b|\. \.venv/bin/activate$)")
SMALL = {
    "compare": ["--minutes", "0.4", "--data.image_size", "32"],
    "fit": ["--data.image_size", "32", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"],
    "profile": ["--image-size", "32", "--rounds", "3"],
}


def lines(page: Path) -> Iterator[str]:
    """The commands in a page's blocks, with their continued lines and without comments."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE):
        yield re.sub(r"\s+#.*", "", line).strip()


def mentioned(page: Path) -> Iterator[str]:
    """Commands within a sentence, unless they have a word in capitals to put something else for."""
    for line in re.findall(r"`(icnets \w+ [^`]+)`", page.read_text(encoding="utf-8")):
        if not re.search(r"\b[A-Z]{2,}\b", line):
            yield " ".join(line.split())


def commands() -> list[str]:
    """Each command once, in the order in which one reads them."""
    found = [line for page in PAGES for line in [*lines(page), *mentioned(page)] if line.startswith("icnets ")]
    return list(dict.fromkeys(found))


def made_small(command: str) -> list[str]:
    """The words of a command, and the options with which it takes seconds and downloads nothing."""
    words = shlex.split(command)
    more = list(SMALL.get(words[1], []))
    if "recipes/fit_folder.yaml" in words:
        more += ["--model.pretrained", "false", "--data.workers", "0"]
    elif "--model" in words and words[1] in ("fit", "compare") and "--model.init_from" not in words:
        more += ["--weights", f"{words[words.index('--model') + 1]}.safetensors"]
    return [*words, *more]


def test_blocks_hold_nothing_that_is_neither_tried_nor_an_installation():
    for page in PAGES:
        assert [line for line in lines(page) if not line.startswith("icnets ") and not INSTALLS.match(line)] == []
    assert {shlex.split(command)[1] for command in commands()} >= {
        "compare",
        "fit",
        "test",
        "predict",
        "export",
    }
    readme = PAGES[0].read_text(encoding="utf-8")
    assert next(line for line in lines(PAGES[0]) if line.startswith("icnets ")).startswith("icnets compare photos")
    assert not re.search(r"\bWLD\b|warm start|w′", readme.partition("    icnets ")[0])  # no jargon before it


def test_the_wheel_is_called_what_the_readme_says():
    assert f"dist/icnets-{icnets.__version__}-py3-none-any.whl[train,export]" in PAGES[0].read_text(encoding="utf-8")


def test_the_demo_is_the_documented_command():
    text = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    (demo,) = re.findall(r"^\t\$\(BIN\)/(icnets compare .*)$", text, flags=re.MULTILINE)
    (photos,) = re.findall(r"^\t\$\(BIN\)/python benchmarks/demo_photos.py --out (\S+)$", text, flags=re.MULTILINE)
    words = shlex.split(demo)
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert words[2] == photos
    assert options["--weights"] == f"{photos}/lite0.safetensors"
    assert float(options["--minutes"]) <= 5  # six with what comes before and after
    defaults = inspect.signature(demo_photos.write_photos).parameters
    photographs = sum(len(demo_photos.CLASSES) * defaults[part].default for part in ("train", "test"))
    assert f"{photographs} photographs" in PAGES[0].read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run."""
    write_cells(tmp_path, 64, train=150, val=3)
    (tmp_path / "train").rename(tmp_path / "photos")
    (tmp_path / "val").rename(tmp_path / "new_photos")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    named = (re.search(r"--model (\w+)", command) for command in commands())
    for name in {match[1] for match in named if match and not match[1].startswith("ic_")}:
        save_file(timm.create_model(name).state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_runs(folder: Path) -> None:
    for command in commands():
        words = made_small(command)
        call = [sys.executable, "-m", "icnets.cli", *words[1:]]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    runs = folder / "runs"
    assert {path.name for path in runs.iterdir()} >= {"basic", "ic", "mine"}
    assert (folder / "classes.csv").read_text(encoding="utf-8").count("new_photos") == 6
    assert (folder / "best.onnx").is_file()
    for picture in ("curves.png", "batch.png", "confusion.png", "mistakes.png", "test.json"):
        assert (runs / "ic" / picture).is_file(), picture
    assert list(folder.rglob("report.html"))
