"""``--max-slowdown`` in convert, fit and compare: measured once, and the layers that it chose are kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import icnets
from icnets import ICConv2d
from icnets.cli import main
from icnets.comparison import lines
from icnets.convert import slowdown
from icnets.support.rounds import Ratio
from training.folders import write_classes

pytestmark = pytest.mark.usefixtures("own_run")
SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}
MODEL = ["--model", "resnet10t", "--model.model_options", json.dumps(SMALL)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Every unit takes 1 % of the network's time; engine and shape of what was measured."""
    found: list[tuple[str, tuple[int, ...]]] = []

    class Clock:
        def __init__(self, trial: object, engine: str, example: torch.Tensor) -> None:
            self.networks = 0
            found.append((engine, tuple(example.shape)))

        def __call__(self, names: list[str], longer: int = 1) -> tuple[Ratio, int]:
            ratio = 1 + 0.01 * len(names)
            self.networks += 1
            return Ratio(ratio, ratio, ratio), 11

    monkeypatch.setattr(slowdown, "Timing", Clock)
    return found


def units(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, ICConv2d)]


def test_fit_measures_once_and_goes_on_with_what_it_chose(
    measured: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(write_classes(tmp_path / "photos", ant=12, bee=12))
    budget = ["--max-slowdown", "1.05", "--engine", "training"]
    options = [*MODEL, *budget, "--data.image_size", "32", "--data.batch_size", "6", "--name", "a"]
    assert main(["fit", root, *options, "--trainer.max_epochs", "1", "--plan"]) == 0
    assert "without collisions, of which it measures how many fit" in capsys.readouterr().out
    assert not measured
    assert main(["fit", root, *options, "--trainer.max_epochs", "1"]) == 0
    assert "x1.050 [1.050, 1.050] of the basic network's time (training, batch " in capsys.readouterr().out
    assert measured == [("training", (6, 3, 32, 32))]
    ic = yaml.safe_load(Path("runs/a/config.yaml").read_text())["model"]["ic"]
    assert (ic["max_slowdown"], ic["engine"], len(ic["only"])) == (1.05, "training", 5)
    assert sorted(units(icnets.load("runs/a/checkpoints/best.safetensors"))) == sorted(ic["only"])
    assert main(["fit", "--name", "a", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--name", "a"]) == 0
    assert main(["predict", "runs/a", root + "/ant"]) == 0
    assert len(measured) == 1


def test_from_trained_weights_the_function_is_kept(measured: list, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", ant=12, bee=12)
    icnets.fit("resnet10t", root, name="basic", max_epochs=1, image_size=32, model_options=SMALL)
    start = ["--weights", "runs/basic/checkpoints/best.safetensors", "--max-slowdown", "1.03"]
    assert main(["fit", str(root), *MODEL, *start, "--data.image_size", "32", "--name", "ic", "--plan"]) == 0
    assert main(["fit", str(root), *MODEL, *start, "--data.image_size=32", "--name=ic", "--trainer.max_epochs=1"]) == 0
    config = yaml.safe_load(Path("runs/ic/config.yaml").read_text())
    assert config["model"]["ic"]["warm_start"] == "gain"
    assert len(config["model"]["ic"]["only"]) == 3
    assert measured == [("eager", (1, 3, 32, 32))]


def test_a_module_in_python(measured: list) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2))
    sets = [torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.tensor([0, 1] * 4)) for _ in range(2)]
    ic = icnets.ICConfig(max_slowdown=1.015)
    icnets.fit(model, sets, num_classes=2, ic=ic, max_epochs=1, name="own", enable_progress_bar=False)
    assert len(units(model)) == 1
    assert yaml.safe_load(Path("runs/own/config.yaml").read_text())["model"]["ic"]["only"] == units(model)
    assert len(measured) == 1


def test_compare_measures_once_and_goes_on(measured: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(write_classes(tmp_path / "photos", ant=20, bee=20))
    command = ["compare", root, "--model", "resnet10t", "--network.weights", "null", "--minutes", "null"]
    command += ["--network.options", json.dumps(SMALL), "--data.image_size", "32", "--data.batch_size", "8"]
    command += ["--training.epochs", "1", "--training.extra_epochs", "1", "--workers", "1", "--out", "out"]
    command += ["--max-slowdown", "1.02", "--engine", "eager"]
    assert main([*command, "--seeds", "[0]"]) == 0
    assert "2 layers: x1.020 [1.020, 1.020] of the basic network's time (eager, batch 1" in capsys.readouterr().out
    assert main([*command, "--seeds", "[0, 1]"]) == 0
    assert len(measured) == 1
    assert len(lines.read(Path("out/lines.jsonl"))) == 1 + 5 + 10
    assert len(units(icnets.load("out/checkpoints/ic-seed1.safetensors"))) == 2
    methods = json.loads(Path("out/results.json").read_text())["settings"]["methods"]
    assert [len(m["ic"]["only"]) for m in methods if m["ic"]] == [2, 2]


def test_convert_writes_what_fits(measured: list, capsys: pytest.CaptureFixture[str]) -> None:
    icnets.save(icnets.create_model("resnet10t", ic=None, num_classes=2, **SMALL), "basic.safetensors")
    size = ["--image-size", "64", "--batch-size", "2"]
    assert main(["convert", "basic.safetensors", "ic.safetensors", "--max-slowdown", "1.04", *size]) == 0
    said = capsys.readouterr().out
    assert "converted 4 layers to IC units" in said
    assert "beyond max_slowdown=1.04 (eager)" in said
    assert measured == [("eager", (2, 3, 64, 64))]
    assert len(units(icnets.load("ic.safetensors"))) == 4
    assert main(["convert", "basic.safetensors", "b.safetensors", "--max-slowdown", "1.001", *size]) == 2
    assert "no IC unit fits max_slowdown=1.001 in eager" in capsys.readouterr().err
    assert not Path("b.safetensors").exists()
    assert main(["convert", "basic.safetensors", "b.safetensors", "--image-size", "64"]) == 2
    assert "--image-size is of the batch that --max-slowdown measures; give that too" in capsys.readouterr().err
    assert main(["convert", "basic.safetensors", "b.safetensors", "--engine", "openvino"]) == 2
    assert "engine is 'openvino'; it must measure a max_slowdown" in capsys.readouterr().err


SCRIPT = """
import os, sys
from icnets.cli import main
from icnets.convert import slowdown
from icnets.support.rounds import Ratio

class Clock:
    networks = 0
    def __init__(self, *what): print("measured by process", os.environ.get("LOCAL_RANK", "0"), flush=True)
    def __call__(self, names, longer=1): return (Ratio(1 + 0.01 * len(names), 1, 1), 3)

slowdown.Timing = Clock
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_of_two_processes_measures_for_both(tmp_path: Path) -> None:
    root = str(write_classes(tmp_path / "photos", ant=12, bee=12))
    Path("script.py").write_text(SCRIPT)
    trainer = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    options = [*MODEL, "--max-slowdown", "1.04", "--data.image_size", "32", "--data.batch_size", "4", "--name", "a"]
    command = [sys.executable, "script.py", "fit", root, *options, *trainer, "--trainer.max_epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("measured by process 0") == 1
    assert "measured by process 1" not in done.stdout
    assert len(units(icnets.load("runs/a/checkpoints/best.safetensors"))) == 4
