"""Every block of the guides runs as it stands, in an empty folder.

A block whose first line is a file's name is that file. timm's and torchvision's training scripts are not in their
packages: ICNETS_TIMM_SOURCE and ICNETS_VISION_SOURCE name checkouts of their repositories, and the guides then run
these scripts. Without them stand-ins take their place, which show the mechanism that the guide relies on (how the
script turns a name into a network), not that the script itself works.
"""

import csv
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from icnets import ICConv2d, load

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs" / "guides"
STAND_INS = Path(__file__).parent / "guides"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shell(command: str) -> None:
    """Runs a command here, with this Python and these sources."""
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
    }
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def run(page: Path) -> dict[str, object]:
    """Runs the blocks of a page in order, each alone; returns the names that the last Python block defined."""
    names: dict[str, object] = {}
    for language, text in blocks(page):
        file = re.match(r"# ([\w-]+\.\w+)\n", text)
        if file is not None:
            Path(file[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            shell(text)
        else:
            assert language == "python", f"{page.name} has a block in {language}"
            names = {"__name__": "__main__"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of whatever library the guide is about
                exec(compile(text, page.name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_guide_is_tested():
    tested = {"pytorch", "lightning", "timm", "torchvision", "onnxruntime", "segmentation", "trackers"}
    assert {page.stem for page in GUIDES.glob("*.md")} == tested


def units(model: torch.nn.Module) -> int:
    return sum(isinstance(m, ICConv2d) for m in model.modules())


@pytest.mark.parametrize("name", ["pytorch", "lightning"])
def test_loops(name, capsys):
    names = run(GUIDES / f"{name}.md")
    assert units(names["model"]) == {"pytorch": 20, "lightning": 17}[name]
    if name == "pytorch":
        assert "epoch 2: loss " in capsys.readouterr().out


def test_the_hub_page(capsys):
    names = run(ROOT / "docs" / "hub.md")
    assert (units(names["model"]), names["model"].pretrained_cfg["architecture"]) == (20, "resnet18")
    assert units(load("my-ic-resnet18/model.safetensors")) == 20


def script(source: str, variable: str, stand_in: str) -> list[Path]:
    """The files that a guide wants beside it: the real ones from a checkout, or the stand-in as train.py."""
    if source == "stand-in":
        shutil.copyfile(STAND_INS / stand_in, "train.py")
        return []
    checkout = os.environ.get(variable)
    if not checkout:
        pytest.skip(f"{variable} names no checkout of the repository that has the script")
    return [Path(checkout)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stand-in", "real"])
def test_timm(source):
    for checkout in script(source, "ICNETS_TIMM_SOURCE", "timm_train.py"):
        shutil.copyfile(checkout / "train.py", "train.py")
    names = run(GUIDES / "timm.md")
    assert units(names["model"]) == 20
    kxk = timm.create_model("ic_resnet18", num_classes=2, ic={"layers": "kxk"})
    saved = torch.load("runs/kxk/last.pth.tar", weights_only=False)["state_dict"]
    assert saved.keys() == kxk.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stand-in", "real"])
def test_torchvision(source):
    for checkout in script(source, "ICNETS_VISION_SOURCE", "vision_train.py"):
        for file in (checkout / "references" / "classification").glob("*.py"):
            shutil.copyfile(file, file.name)
    run(GUIDES / "torchvision.md")
    assert Path("ic.safetensors").is_file()


def test_onnxruntime(capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = run(GUIDES / "onnxruntime.md")
    assert capsys.readouterr().out.count("photos/") == 16
    (code,) = (text for _, text in blocks(GUIDES / "onnxruntime.md") if "onnxruntime" in text and "import" in text)
    assert not re.search(r"\b(torch|icnets|timm)\b", code)  # it runs where these are not
    shell("icnets predict ic.onnx photos --out classes.csv")
    with open("classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    odds = np.exp(names["logits"] - names["logits"].max(1, keepdims=True))
    odds = (odds / odds.sum(1, keepdims=True)).max(1)
    assert [Path(row["path"]) for row in rows] == names["paths"]
    assert np.abs(odds - [float(row["probability_1"]) for row in rows]).max() < 1e-5


def test_segmentation(capsys):
    run(GUIDES / "segmentation.md")
    out = capsys.readouterr().out
    assert "skipped 0" in out
    assert out.endswith("torch.Size([2, 2, 64, 64])\n")


def logged(tracker: str) -> bool:
    """Whether the training loss is where the tracker keeps it."""
    if tracker == "csv":
        return "train/loss" in Path("logs/csv/version_0/metrics.csv").read_text(encoding="utf-8")
    if tracker == "wandb":
        (run,) = Path("logs/wandb").glob("offline-run-*/*.wandb")
        return b"train/loss" in run.read_bytes()
    if tracker == "mlflow":
        with closing(sqlite3.connect("mlflow.db")) as database:
            return ("train/loss",) in database.execute("select distinct key from metrics").fetchall()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return "train/loss" in EventAccumulator("logs/tb/version_0").Reload().Tags()["scalars"]


# The others are the same training with another line of YAML.
@pytest.mark.parametrize(
    "tracker", ["csv", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tensorboard", "mlflow", "wandb"))]
)
def test_trackers(tracker, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    if tracker != "csv":
        pytest.importorskip(tracker, reason=f"{tracker} isn't installed")
    texts = blocks(GUIDES / "trackers.md")
    for language, text in texts:
        if language == "yaml":
            assert len(text.strip().splitlines()) == 2  # its name, and the one line
            Path(text.split()[1]).write_text(text, encoding="utf-8")
    (command,) = (text for language, text in texts if language == "sh")
    assert "csv.yaml --name csv" in command
    shell(command.replace("csv", tracker))
    assert logged(tracker)
    assert Path("runs", tracker, "history.csv").is_file()
