"""A network of one's own on the command line: ``my_cnn.py:MyCNN`` wherever a network is named, and ``--weights``."""

import csv
import sys
from pathlib import Path

import pytest
import torch

import icnets
from icnets.cli import main
from icnets.open_network import make_network, open_network
from icnets.support.named_code import imported
from icnets.training.task import ClassificationTask
from training.folders import write_classes

pytestmark = pytest.mark.usefixtures("own_run")

CODE = """
from torch import nn

class MyCNN(nn.Module):
    def __init__(self, num_classes, width=4, in_chans=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(4))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

def colour_only(num_classes=5):
    return MyCNN(num_classes)

def no_classes(width): ...
def no_network(num_classes): return "text"
network = MyCNN(2)
"""
NAME = "my_cnn.py:MyCNN"
BEST = "runs/a/checkpoints/best.safetensors"
FIT = ["fit", "photos", "--model", NAME, "--data.image_size", "16", "--trainer.max_epochs", "1", "--name", "a"]


@pytest.fixture(autouse=True)
def _code(own_run: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_cnn.py").write_text(CODE)
    write_classes(tmp_path / "photos", ant=12, bee=12)


def predicted(*argv: str) -> list[dict[str, str]]:
    assert main(["predict", *argv, "photos", "--out", "out.csv"]) == 0
    with open("out.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_its_trained_self_teaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FIT) == 0
    taught = ["--model.init_from", BEST, "--model.teacher", BEST, "--model.ic.warm_start", "gain", "--name", "taught"]
    capsys.readouterr()
    assert main([*FIT[:-2], *taught]) == 0
    assert "MyCNN with 1 IC units" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"{BEST} is of a network of your own; name its code too"):
        ClassificationTask("resnet10t", num_classes=2, teacher=BEST)


def test_it_is_trained_resumed_tested_predicted_and_exported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--model.ic.layers", "all"]) == 0
    assert "next: icnets report runs/a\n" in capsys.readouterr().out
    resumed = ["fit", "--name", "a", "--ckpt_path", "last", "--model", NAME, "--trainer.max_epochs", "2"]
    assert main(resumed) == 0
    assert main(["test", "--name", "a", "--model", NAME]) == 0
    rows = predicted(NAME, "--weights", BEST)
    assert rows == predicted(NAME, "--weights", "runs/a")
    network = icnets.load(BEST, make_network(NAME, 2))
    opened = open_network(NAME, weights=BEST)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(opened.network(x), network(x))
    assert (opened.notes.class_names, opened.notes.image_size) == (["ant", "bee"], 16)
    assert main(["export", NAME, "--weights", BEST, "--format", "torch-export"]) == 0
    assert Path("MyCNN.pt2").is_file()


@pytest.mark.parametrize("source", ["runs/a", BEST, "runs/a/checkpoints/step-000000002.ckpt"])
def test_a_file_imports_no_code_and_says_how(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FIT) == 0
    del sys.modules[imported(NAME).__module__]
    Path("my_cnn.py").write_text("raise SystemExit('imported')\n")
    assert main(["predict", source, "photos"]) == 2
    remedy = f"is of a network of your own; name its code too: {NAME} --weights {BEST}"
    assert remedy in capsys.readouterr().err


def test_a_configuration_needs_consent(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(f"model: {{model: '{NAME}'}}\ndata: {{image_size: 16}}\ntrainer: {{max_epochs: 1}}\n")
    Path("my_cnn.py").write_text(f"import os\nos.mkdir('made')\n{CODE}")
    config = ["fit", "--config", "c.yaml", "--data.root", "photos"]
    for extra in ([], ["--plan"]):
        assert main([*config, *extra]) == 2
        assert capsys.readouterr().err == (
            f"icnets: error: {NAME} was not imported: it is code, and a configuration alone names it; if you trust it, "
            f"name it too, by --model {NAME}, or give --allow-imports true\n"
        )
    assert not Path("made").exists()
    assert main([*config, "--model", NAME]) == 0
    assert Path("made").is_dir()
    assert main([*config, "--allow-imports", "true"]) == 0
    assert main(["test", "--ckpt_path", "runs/MyCNN-1/checkpoints/best.safetensors"]) == 2
    assert "was not imported" in capsys.readouterr().err


def test_weights_of_others_say_how_many_classes(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_network(NAME, 5)
    torch.save({"state_dict": other.state_dict()}, "five.pth")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(open_network(NAME, weights="five.pth").network(x), other.eval()(x))
    assert len(predicted(NAME, "--weights", "five.pth", "--image-size", "16")) == 24
    assert main([*FIT, "--weights", "five.pth"]) == 0
    assert "five.pth is of 5 classes: the last layer, head, is new, and the rest has the file's weights" in caplog.text
    evaluated = ["test", "--model", NAME, "--weights", "five.pth", "--data.root", "photos", "--data.image_size", "16"]
    assert main(evaluated) == 2
    assert "five.pth is of 5 classes, and the data has 2; give images" in capsys.readouterr().err
    assert main(["convert", "five.pth", "ic.safetensors", "--model", NAME]) == 0
    converted = open_network(NAME, weights="ic.safetensors")
    torch.testing.assert_close(converted.network(x), other(x))
    assert next(icnets.ic_parameters(converted.network), None) is not None


def test_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "16", "--rounds", "2", "--num-classes", "3"]
    assert main(["profile", NAME, *options]) == 0
    assert f"IC {NAME}, all convolutions" in capsys.readouterr().out


def test_arguments_by_the_signature() -> None:
    assert make_network(NAME, 3, in_chans=1).stem[0].in_channels == 1
    assert make_network("my_cnn.py:colour_only", 3, in_chans=1).stem[0].in_channels == 3
    assert make_network("my_cnn.py:colour_only").head.out_features == 5
    assert make_network(NAME, 3, width=8).head.in_features == 8
    assert make_network("torchvision.models:resnet18", 3).fc.out_features == 3  # by its **kwargs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_cnn.py", "my_cnn.py is code; say which class or function in it makes the network: my_cnn.py:NAME"),
        ("my_cnn.py:Other", "my_cnn.py:Other can't be imported: AttributeError: module 'my_cnn_"),
        (
            "my_cnn.py:no_classes",
            "my_cnn.py:no_classes(num_classes=2) fails: TypeError: no_classes() got an unexpected",
        ),
        ("my_cnn.py:no_network", "my_cnn.py:no_network makes a str; it must make an nn.Module"),
        ("my_cnn.py:network", "my_cnn.py:network is a MyCNN; name a class or function that makes the network"),
    ],
)
def test_mistakes(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "photos", "--model", name]) == 2
    out = capsys.readouterr()
    assert out.err.startswith(f"icnets: error: {message}")
    assert out.err.count("\n") == 1


def test_mistakes_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    make = ["fit", "photos", "--model", NAME, "--model.model_options", "{wdth: 8}"]
    for argv, message in (
        (make, f"{NAME}(num_classes=2, in_chans=3, wdth=8) fails: TypeError: *unexpected keyword argument 'wdth'"),
        (["predict", NAME, "photos"], f"{NAME} alone has random weights; give --weights FILE"),
        (["predict", NAME, "photos", "--weights", "none.pth"], "there is no checkpoint none.pth; check the path"),
        (["predict", "resnet18", "photos", "--weights", "a.pth", "--pretrained"], "--pretrained and --weights each"),
        (["fit", "photos", "--model", NAME, "--model.pretrained", "true"], "pretrained goes with timm's names; give"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert all(part in err for part in message.split("*")), err
