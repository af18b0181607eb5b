"""The first thing a user tries: a small folder, the default options, then the IC network by the documented command."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from icnets.cli import main
from icnets.data.epochs import default_batch
from icnets.training.optimization import Optimization, scaled_lr, with_lr
from training.folders import write_classes, write_gratings, write_textures
from training.test_task import digits, fit, task, tiny

pytestmark = pytest.mark.usefixtures("own_run")

NARROW = ["--model.model_options", "{channels: [8, 16, 32, 64]}"]
TINY = ["--model.model_options", "{channels: [8, 8, 16, 16], stem_width: 8}", "--data.image_size", "16"]


def history(name: str) -> list[dict[str, float]]:
    with open(Path("runs") / name / "history.csv", newline="") as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path("runs") / name / "config.yaml").read_text())
    return found


def train(root: Path, name: str, *options: str) -> dict[str, float]:
    """The last epoch of ``icnets fit`` at its defaults, but for the size of the images and the length."""
    model = [] if "--model.model" in options else ["--model.model", "resnet18"]
    data = ["--data.root", str(root), "--data.image_size", "64", "--trainer.max_epochs", "4"]
    assert main(["fit", "--name", name, *model, *data, *options]) == 0
    return history(name)[-1]


def then_ic(root: Path, name: str, basic: str, *options: str) -> dict[str, float]:
    weights = f"runs/{basic}/checkpoints/best.safetensors"
    ic = ["--model.model", "ic_resnet18", "--model.init_from", weights, "--model.teacher", weights]
    return train(root, name, *ic, *options)


@pytest.mark.slow
def test_textures_with_a_narrow_network(tmp_path: Path) -> None:
    root = write_textures(tmp_path / "textures")
    rows = [train(root, "basic", *NARROW), then_ic(root, "ic", "basic", *NARROW)]
    for row in rows:
        assert row["val/top1"] > 0.8
        assert row["val/loss"] < math.log(4)


@pytest.mark.slow
def test_batches_so_large_that_an_epoch_has_three_steps(tmp_path: Path) -> None:
    root = write_textures(tmp_path / "textures")
    row = train(root, "large", *NARROW, "--data.batch_size", "64", "--model.lr", "0.1")
    assert row["step"] == 12
    assert row["val/top1"] > 0.6
    assert row["val/loss"] < 1.0  # of running averages: 1.37, and top1 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("write", "seed"), [(write_textures, "0"), (write_gratings, "1")])
def test_the_documented_commands(write: Any, seed: str, tmp_path: Path) -> None:
    root = write(tmp_path / "images")
    least = 0.8 if write is write_textures else 0.7
    seeded = ["--seed_everything", seed]
    for row in (train(root, "basic", *seeded), then_ic(root, "ic", "basic", *seeded)):
        assert row["val/top1"] > least
        assert row["val/loss"] < math.log(4)


def test_the_documentation_quotes_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    lines = (root / "benchmarks/results/small_folders.jsonl").read_text().splitlines()
    rows = {row["seed"]: row for row in map(json.loads, lines) if row["images"] == "textures"}
    text = " ".join((root / "docs/train.md").read_text().split())
    for method in ("basic", "ic_wld"):
        shares = ", ".join(f"{100 * rows[seed][method]['val_top1']:.0f}" for seed in sorted(rows))
        assert f"on {shares} %" in text


# The defaults.


@pytest.mark.parametrize("batches_per_step", [1, 2, 4, 24])
def test_the_batch_leaves_an_epoch_steps_enough(batches_per_step: int) -> None:
    for images in (1, 20, 159, 160, 161, 202, 319, 320, 639, 640, 1279, 1280, 5000, 1_281_167):
        size = default_batch(images, batches_per_step)
        assert 8 <= size <= 64
        assert size == 8 or images // (size * batches_per_step) >= 20
        assert size == 64 or images // ((size + 1) * batches_per_step) < 20


@pytest.mark.parametrize(
    ("options", "fine_tunes", "lr", "new_lr"),
    [
        ({}, False, 0.1, 1),
        ({}, True, 0.01, 0.1),
        ({"optimizer": "adamw"}, False, 1e-3, 1),
        ({"optimizer": "adamw", "lr_scaling": "sqrt"}, True, 1e-4, 0.1),
        ({"optimizer": "lamb"}, True, 5e-4, 0.1),
        ({"lr": 0.3}, False, 0.3, 1),
        ({"new_lr": 0.5}, False, 0.1, 0.5),
        ({"new_lr": 1.0}, True, 0.01, 1),
        ({"lr_batch": 32}, True, 0.01, 0.1),  # for 32 images; 0.0025 for 8
    ],
)
def test_the_learning_rates_where_none_is_given(
    options: dict[str, Any], fine_tunes: bool, lr: float, new_lr: float
) -> None:
    found = with_lr(Optimization(**options), fine_tunes=fine_tunes)
    assert (found.lr, found.new_lr) == (lr, new_lr)
    assert with_lr(found, fine_tunes=fine_tunes) == found
    if found.lr_batch is not None:
        assert scaled_lr(lr, lr_batch=found.lr_batch, global_batch=8) == pytest.approx(lr / 4)


@pytest.mark.slow
def test_what_is_chosen_is_said_and_written_and_gives_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_classes(tmp_path / "photos", ant=231, bee=231)
    small = ["--data.root", str(root), *TINY, "--trainer.max_epochs", "1"]
    assert main(["fit", "--name", "basic", "--model.model", "resnet10t", *small, "--plan"]) == 0
    assert "batch      16 = 16 a device × 1 devices × 1 accumulated\nsteps      20 an epoch" in _aligned(capsys)
    assert main(["fit", "--name", "basic", "--model.model", "resnet10t", *small]) == 0
    assert "; 16 images a step, 20 steps an epoch, lr 0.1\n" in capsys.readouterr().out

    weights = "runs/basic/checkpoints/best.safetensors"
    fine = [
        "--model.model",
        "resnet10t",
        "--model.init_from",
        weights,
        *small,
        "--trainer.accumulate_grad_batches",
        "2",
    ]
    assert main(["fit", "--name", "fine", *fine, "--plan"]) == 0
    assert "batch      16 = 8 a device × 1 devices × 2 accumulated\n" in (planned := _aligned(capsys))
    assert "optimizer  sgd, lr 0.01, one-cycle\n" in planned
    assert main(["fit", "--name", "fine", *fine]) == 0
    line = "16 images a step, 21 steps an epoch, lr 0.01 (fine-tuning: a tenth of the usual, gradients clipped to 1)\n"
    assert line in capsys.readouterr().out
    found = config("fine")
    assert (found["model"]["lr"], found["trainer"]["gradient_clip_val"]) == (0.01, 1.0)
    assert found["model"]["new_lr"] == 0.1
    assert (found["data"]["batch_size"], found["data"]["eval_batch_size"]) == (8, 64)

    assert main(["fit", "--config", "runs/fine/config.yaml", "--name", "again"]) == 0
    assert history("again")[0] | {"seconds": 0.0} == history("fine")[0] | {"seconds": 0.0}
    again = {**config("again"), "name": "fine"}
    assert again == found


def _aligned(capsys: pytest.CaptureFixture[str]) -> str:
    lines = (line.split(None, 1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    return "".join(f"{line[0]:<9}  {line[1]}\n" for line in lines if len(line) == 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "lr", "clip"),
    [
        (["--model.lr", "0.05"], 0.05, None),
        (["--trainer.gradient_clip_val", "3.5"], 0.01, 3.5),
        (["--data.batch_size", "32"], 0.01, 1.0),
        (["--config", "given.yaml"], 0.03, None),
    ],
)
def test_what_is_given_wins(tmp_path: Path, given: list[str], lr: float, clip: float | None) -> None:
    root = write_classes(tmp_path / "photos", ant=40, bee=40)
    Path("given.yaml").write_text("model: {lr: 0.03}\n")
    small = ["--data.root", str(root), *TINY, "--model.model", "resnet10t", "--trainer.max_epochs", "1"]
    assert main(["fit", "--name", "basic", *small]) == 0
    start = ["--model.init_from", "runs/basic/checkpoints/best.safetensors"]
    assert main(["fit", "--name", "fine", *given, *small, *start]) == 0
    found = config("fine")
    assert (found["model"]["lr"], found["trainer"]["gradient_clip_val"]) == (lr, clip)


@pytest.mark.slow
def test_what_ic_adds_to_trained_weights_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", ant=40, bee=40)
    small = ["--data.root", str(root), *TINY, "--trainer.max_epochs", "2", "--keep", "9"]
    assert main(["fit", "--name", "basic", "--model.model", "resnet18", *small]) == 0
    start = ["--model.model", "ic_resnet18", "--model.init_from", "runs/basic/checkpoints/best.safetensors"]
    assert main(["fit", "--name", "ic", *small, *start]) == 0
    assert "a tenth of the usual, times 0.1 for what IC adds, gradients clipped to 1)" in capsys.readouterr().out
    assert config("ic")["model"]["new_lr"] == 0.1
    first, *_ = sorted(Path("runs/ic/checkpoints").glob("step-*.ckpt"), key=lambda p: int(p.stem.split("-")[1]))
    groups = torch.load(first, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01, 0.01, 0.001])
    assert main(["fit", "--name", "resumed", "--ckpt_path", str(first)]) == 0
    last = [sorted(Path("runs", name, "checkpoints").glob("step-*.ckpt"))[-1] for name in ("ic", "resumed")]
    assert last[0].name == last[1].name != first.name
    whole, resumed = (torch.load(path, weights_only=True)["state_dict"] for path in last)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert main(["fit", "--name", "other", "--ckpt_path", str(first), "--model.new_lr", "1"]) != 0
    assert "was trained with new_lr 0.1, and new_lr is 1: a training goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "clipped"), [({}, True), ({"lr": 0.00125}, False)])
def test_fine_tuning_clips_gradients(given: dict[str, float], clipped: bool) -> None:
    norms: list[float] = []

    class Norms(L.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad.square().sum() for p in pl_module.parameters() if p.grad is not None]
            norms.extend([float(torch.stack(gradients).sum().sqrt())] if gradients else [])

    network = tiny()
    with torch.no_grad():
        network.get_submodule("fc").weight *= 100  # type: ignore[operator]
    module = task(network, teacher=tiny(), **given)
    fit(module, digits(), Norms(), max_epochs=2)
    assert len(norms) >= 2
    assert (max(norms) <= 1 + 1e-4) is clipped
    assert module.trainer.optimizers[0].param_groups[0]["initial_lr"] == (0.01 if clipped else 0.00125)
