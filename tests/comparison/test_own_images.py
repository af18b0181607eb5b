"""icnets compare FOLDER --model NAME, and icnets.compare: the same, whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import icnets
from icnets.cli.compare import main, read_settings
from icnets.comparison import lines

TINY = {"channels": [8, 8, 8, 8], "stem_width": 8}
OPTIONS = ["--network.options", json.dumps(TINY), "--data.image_size", "32", "--data.batch_size", "8"]
FIXED = ["--minutes", "null", "--seeds", "[0, 1]", "--training.epochs", "2", "--training.extra_epochs", "1"]
CODE = """
from torch import nn

def net(num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light and dark images, some of them hard to tell."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for kind, light in (("dark", 110), ("light", 145)):
        (root / kind).mkdir(parents=True)
        for i in range(40):
            pixels = rng.normal(light + 30 * rng.normal(), 40, (36, 36, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{i}.png")
    return root


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my_cnn.py").write_text(CODE)
    return tmp_path


def runs(out: Path) -> list[dict]:
    """The runs, without what tells of time."""
    clock = ("seconds", "epoch_seconds")
    found = [line for line in lines.read(out / "lines.jsonl") if line["kind"] == "run"]
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [str(photos), "--model", "resnet10t", "--network.weights", "null", "--out", str(out), *OPTIONS, *more]


@pytest.mark.slow
def test_one_command_ends_with_a_verdict_and_a_page(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    assert main(command(photos, out, "--minutes", "1")) == 0
    took = time.monotonic() - began
    printed = capsys.readouterr().out
    assert "1 minutes" not in printed
    assert printed.index("so far, 1 of") < printed.index("results.json")
    assert any(word in printed for word in ("\nKeep ", "\nDon't: ", "\nCan't tell: "))
    assert "more than" not in printed
    assert "One test image is 5.0 pp" in printed
    assert (out / "report.html").is_file()
    record = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in record["methods"]] == ["basic", "basic, trained on", "IC", "basic + WLD", "IC + WLD"]
    assert record["recommendation"] in printed
    assert all(0 <= row["error"]["low"] <= row["error"]["high"] <= 100 for row in record["methods"])
    assert took < 100  # on a machine that has something else to do, too
    assert main(command(photos, out, "--minutes", "1")) == 0
    assert "0 to do" in capsys.readouterr().out


def interrupted(arguments: list[str], how: signal.Signals, out: Path, log: Path) -> tuple[int, str]:
    """The exit status and what was printed of a comparison that is told to end once it has trained a network."""

    def trained() -> int:
        path = out / "lines.jsonl"
        return path.read_text().count('"kind":"run"') if path.is_file() else 0

    before = trained()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "icnets.cli", "compare", *arguments],
            stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            # Where tests run in the background of a shell, SIGINT is ignored, and so in what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        for _ in range(2400):
            if process.poll() is not None or trained() > before:
                break
            time.sleep(0.05)
        process.send_signal(how)
        return process.wait(timeout=120), log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_it_shows_what_there_is_and_goes_on_to_the_same(photos: Path, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(photos, whole, *FIXED)) == 0
    arguments = command(photos, out, *FIXED, "--workers", "2")
    done = 0
    for how in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):  # each time it goes on where it was
        status, printed = interrupted(arguments, how, out, tmp_path / "log")
        assert status == (-how if how is signal.SIGKILL else 130), printed
        if how is not signal.SIGKILL:
            assert "interrupted: " in printed
            assert "to go on: icnets compare" in printed
            (out / "report.html").unlink()
        assert done < len(runs(out)) < 10
        done = len(runs(out))
    assert main(arguments) == 0
    assert runs(out) == runs(whole)


@pytest.mark.slow
def test_a_network_of_ones_own_by_its_code_and_as_a_module(photos: Path, code: Path) -> None:
    settings = {"seeds": [0, 1], "training": {"epochs": 2, "extra_epochs": 1}}
    torch.manual_seed(0)
    from icnets.support.named_code import imported

    network: nn.Module = imported("my_cnn.py:net")(num_classes=2)
    torch.save(network.state_dict(), "start.pth")
    options = ["--data.image_size", "32", "--data.batch_size", "8", *FIXED]
    typed = [str(photos), "--model", "my_cnn.py:net", "--weights", "start.pth", "--out", "typed", *options]
    assert main(typed) == 0
    data = {"root": str(photos), "image_size": 32, "batch_size": 8}
    found = icnets.compare(network, data, minutes=None, out="called", **settings)
    assert (found.runs, found.planned, found.stop) == (10, 10, None)
    assert "basic, trained on" in str(found)
    names = [{k: v for k, v in run.items() if k != "id"} for run in runs(Path("typed"))]
    assert names == [{k: v for k, v in run.items() if k != "id"} for run in runs(Path("called"))]
    assert torch.equal(network.state_dict()["0.weight"], torch.load("start.pth")["0.weight"])


def test_what_the_network_was_trained_with_is_used(photos: Path, code: Path) -> None:
    half = read_settings([str(photos), "--model", "tf_efficientnet_lite0", "--weights", "x.safetensors"])
    assert half.data["mean"] == half.data["std"] == [0.5, 0.5, 0.5]
    assert (half.network.name, half.network.weights, half.minutes) == ("tf_efficientnet_lite0", "x.safetensors", 20)
    assert half.out == Path("runs/compare-tf_efficientnet_lite0-photos")
    given = ["--data.mean", "[0.1, 0.2, 0.3]", "--minutes", "5", "--out", "there"]
    other = read_settings([str(photos), "--model", "resnet18", *given])
    assert (other.data["mean"], other.minutes, other.out) == ([0.1, 0.2, 0.3], 5, Path("there"))
    assert other.network.weights == "pretrained"
    grey = read_settings([str(photos), "--model", "resnet18", "--data.in_chans", "1"])
    assert "mean" not in grey.data


def test_a_checkpoint_is_its_network_and_its_weights(photos: Path, code: Path) -> None:
    model = icnets.create_model("resnet10t", ic=None, num_classes=2, **TINY)
    icnets.save(model, "basic.safetensors", metadata={"mean": "[0.4, 0.4, 0.4]", "std": "[0.2, 0.2, 0.2]"})
    found = read_settings([str(photos), "--model", "basic.safetensors"])
    assert (found.network.name, found.network.weights) == ("resnet10t", "basic.safetensors")
    assert found.network.options == TINY
    icnets.convert_(model)
    icnets.save(model, "ic.safetensors")
    with pytest.raises(ValueError, match="has IC units already; give the basic network"):
        read_settings([str(photos), "--model", "ic.safetensors"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--model", "my_cnn.py:net"], "needs the weights that it starts from: give --weights FILE"),
        (["photos", "--model", "resnet18", "--seeds", "[0]"], "seeds is .* but minutes chooses it"),
        (["photos", "--model", "resnet18", "--minutes", "0"], "minutes is 0"),
        ([], "there are no methods to compare; give a folder of images, or a recipe"),
    ],
)
def test_mistakes(arguments: list[str], message: str, code: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(arguments)


def test_a_recipe_names_no_code_by_itself(code: Path) -> None:
    Path("r.yaml").write_text("methods: [{name: basic}]\nnetwork: {name: 'my_cnn.py:net'}\n")
    with pytest.raises(ValueError, match="was not imported"):
        read_settings(["--config", "r.yaml"])
    assert read_settings(["--config", "r.yaml", "--model", "my_cnn.py:net"]).network.name == "my_cnn.py:net"


def test_unknown_settings_of_the_function_are_named() -> None:
    with pytest.raises(ValueError, match="epoch is no setting; did you mean epochs"):
        icnets.compare("resnet10t", {"image_size": 16}, minutes=None, training={"epoch": 1})
