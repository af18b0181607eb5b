import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from icnets import create_model
from icnets.cli import main
from icnets.training.plan import checkpoint_bytes, devices_of, preflight
from icnets.training.run_checkpoints import last_checkpoints
from training.folders import write_classes

CONF = Path(__file__).parents[1] / "conf"
BASIC, IC, FOLDER = (str(CONF / f"{name}.yaml") for name in ("digits_basic", "digits_ic", "folder"))


pytestmark = pytest.mark.usefixtures("own_run")


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, str]:
    assert main(["fit", *argv, "--plan"]) == 0
    assert not Path("runs").exists()
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {name: text for name, text in lines if name}


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--config", BASIC, "--trainer.accumulate_grad_batches", "2", "--model.lr_batch", "40")
    assert found["devices"] == "1 × cpu on 1 node"
    assert found["images"] == "120 to train, 150 to validate, 797 to test, 10 classes (digits)"
    assert found["batch"] == "80 = 40 a device × 1 devices × 2 accumulated"
    assert found["steps"] == "2 an epoch, 4 in 2 epochs"
    assert found["optimizer"] == "sgd, lr 0.1, one-cycle"
    assert found["writes to"] == "runs/resnet10t-1"
    assert found["missing"] == "nothing"
    assert re.fullmatch(r"resnet10t, [\d.]+ k parameters, [\d.]+ MiB of checkpoints", found["network"])


def test_many_nodes_without_data_or_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.num_nodes", "4"]
    engine = ["--trainer.strategy", "ddp", "--trainer.precision", "bf16-mixed", "--ema", "0.99"]
    model = ["--model.teacher", "none.safetensors"]
    found = planned(capsys, "--config", FOLDER, "--data.root", "nowhere", *trainer, *engine, *model)
    assert found["devices"] == "8 × gpu on 4 nodes"
    images = "1,281,167 to train, 50,000 to validate, 50,000 to test, 1,000 classes (assumed, as ImageNet-1k has them)"
    assert found["images"] == images
    assert found["batch"] == "128 = 4 a device × 32 devices × 1 accumulated"
    assert found["steps"] == "10,009 an epoch, 10,009 in 1 epochs"
    assert found["missing"].startswith("data: nowhere is not a folder")


def test_what_is_missing_is_named_and_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["fit", "--config", IC, "--model.teacher", "t.safetensors", "--model.init_from", "i.pth", "--plan"]) == 0
    )
    out = capsys.readouterr().out
    assert "missing    teacher: there is no checkpoint t.safetensors\n" in out
    assert "           init_from: there is no checkpoint i.pth\n" in out


def test_the_steps_are_those_that_a_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(write_classes(tmp_path / "photos", ant=12, bee=13))
    options = ["--config", FOLDER, "--data.root", root, "--trainer.accumulate_grad_batches", "2"]
    found = planned(capsys, *options)
    assert main(["fit", *options, "--name", "one"]) == 0
    content = torch.load(last_checkpoints(Path("runs/one/checkpoints"))[0], weights_only=True)
    assert found["steps"].startswith(f"{content['global_step']} an epoch")


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", False), ("adamw", True)])
def test_the_size_of_a_checkpoint(optimizer: str, ema: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", BASIC, "--name", "a", "--model.optimizer", optimizer, "--model.model_options", "{}"]
    options += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", *(["--ema", "0.9"] if ema else [])]
    assert main(["fit", *options]) == 0
    files = {path.name: path.stat().st_size for path in Path("runs/a/checkpoints").iterdir()}
    last = last_checkpoints(Path("runs/a/checkpoints"))[0]
    network = create_model("resnet10t", ic=None, num_classes=10, in_chans=1)
    one, kept = checkpoint_bytes(network, optimizer, average=ema, keep=1)
    assert files[last.name] == pytest.approx(one, rel=0.02)
    # No other checkpoint is being written now, and no better weights.
    assert sum(files.values()) == pytest.approx(kept - one - files["best.safetensors"], rel=0.02)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accelerator": "cpu", "devices": "auto"}, (1, 1)),
        ({"accelerator": "gpu", "devices": "4", "num_nodes": 2}, (4, 8)),
        ({"accelerator": "gpu", "devices": [0, 2]}, (2, 2)),
        ({"accelerator": "cpu", "devices": 2}, (2, 2)),
    ],
)
def test_devices(options: dict[str, Any], expected: tuple[int, int]) -> None:
    _, per_node, nodes = devices_of(SimpleNamespace(**{"num_nodes": 1, **options}))
    assert (per_node, per_node * nodes) == expected


# Before training.


def test_no_room_for_the_checkpoints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["fit", "--config", BASIC, "--name", "full"]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"icnets: error: runs/full has 0\.0 MiB of free disk space, but .* need [\d.]+ MiB: free .*\n", err
    )
    assert not Path("runs/full/checkpoints").exists()
    assert main(["fit", "--config", BASIC, "--name", "full", "--trainer.enable_checkpointing", "false"]) == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"can't write to the run's folder .*file/run \(Not a directory\); give another"
    ):
        preflight(tmp_path / "file" / "run", 0)
