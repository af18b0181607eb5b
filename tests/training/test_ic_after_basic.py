"""IC + WLD by the documented commands, after its basic network: it learns, and nothing of the basic network is lost."""

import csv
import math
from pathlib import Path

import pytest

from icnets.cli import main
from training.glyphs import write_glyphs
from training.photographs import write_cells, write_lite0

pytestmark = pytest.mark.usefixtures("own_run")

SEEDS = (0, 1, 2)
Rows = dict[str, dict[str, float]]


def fit(name: str, *options: str) -> dict[str, float]:
    """The last epoch of a run."""
    assert main(["fit", "--name", name, "--trainer.accelerator", "cpu", *options]) == 0
    with open(Path("runs", name, "history.csv"), newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {key: float(last[key]) for key in ("val/loss", "val/top1")}


def basic_then_ic(seed: int, network: list[str], ic: list[str], common: list[str]) -> Rows:
    """The two documented commands: a basic network, then the IC network that starts from it and has it as a teacher."""
    common = [*common, "--seed_everything", str(seed)]
    weights = f"runs/basic-{seed}/checkpoints/best.safetensors"
    taught = ["--model.init_from", weights, "--model.teacher", weights]
    return {
        "basic": fit(f"basic-{seed}", "--model.model", *network, *common),
        "IC + WLD": fit(f"ic-{seed}", "--model.model", *ic, *taught, *common),
    }


def require(found: list[Rows], classes: int) -> None:
    """Every seed: better than guessing, and at most 3 points of accuracy below the basic network."""
    for seed, rows in enumerate(found):
        print(seed, rows)
    for rows in found:
        assert rows["IC + WLD"]["val/loss"] < math.log(classes)
        assert rows["IC + WLD"]["val/top1"] >= rows["basic"]["val/top1"] - 0.03


@pytest.mark.slow
def test_on_digits() -> None:
    options = ["--model.model_options", "{channels: [8, 16, 16, 32]}", "--data.image_size", "8"]
    options += ["--data.train_size", "500", "--data.val_fraction", "0.4", "--trainer.max_epochs", "3"]
    found = [basic_then_ic(seed, ["resnet18"], ["ic_resnet18"], options) for seed in SEEDS]
    require(found, 10)
    assert min(rows["basic"]["val/top1"] for rows in found) > 0.4  # there is something to lose


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_glyphs_of_unseen_fonts(tmp_path: Path) -> None:
    options = ["--model.model_options", "{channels: [8, 16, 16, 32]}", "--data.image_size", "24"]
    options += ["--data.root", str(write_glyphs(tmp_path / "glyphs", 24, 12)), "--trainer.max_epochs", "6"]
    options += ["--data.hflip", "0"]
    found = [basic_then_ic(seed, ["resnet18"], ["ic_resnet18"], options) for seed in SEEDS]
    require(found, 10)
    assert min(rows["basic"]["val/top1"] for rows in found) > 0.4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_photographs_with_a_network_that_knows_imagenet(tmp_path: Path) -> None:
    root = write_cells(tmp_path / "photos", 64, train=150, val=160)
    start = ["--model.init_from", str(write_lite0(tmp_path / "lite0.safetensors"))]
    options = ["--data.root", str(root), "--data.image_size", "64", "--trainer.max_epochs", "3"]
    name, ic = "tf_efficientnet_lite0", ["--model.ic.warm_start", "gain"]  # it has no name with ic_
    found = [basic_then_ic(seed, [name, *start], [name, *ic], options) for seed in SEEDS]
    require(found, 2)
    assert min(rows["basic"]["val/top1"] for rows in found) > 0.7
