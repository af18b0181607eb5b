"""The adapter that runs the tests of timm, torchvision and torch over IC networks, on stand-ins for their sources."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TIMM = """
import pytest, timm

@pytest.mark.base
@pytest.mark.parametrize("model_name", timm.list_models("resnet18"))
def test_listed(model_name):
    assert any("collision" in name for name, _ in timm.create_model(model_name).named_parameters())

@pytest.mark.parametrize("model_name", ["resnet18"])
def test_named(model_name):
    assert model_name in timm.list_models()
    pytest.skip("seen")

def test_fails():
    assert "a reason" == "another"
"""
VISION = """
import torch
from torchvision import models

def test_function():
    outputs = []
    for build in (models.resnet18, models.get_model_builder("resnet18")):
        torch.manual_seed(0)
        model = build(num_classes=3).eval()
        outputs.append(model(torch.ones(1, 3, 32, 32)))
    assert torch.equal(*outputs)
    assert hasattr(model.conv1, "collision")
"""


TORCH = """
import copy, io, pickle
import torch
from torch import nn
from icnets import ICConv2d, ICLinear

def test_silent_conv_cpu_float32():
    layer = nn.Conv2d(2, 3, 3, bias=False)
    assert isinstance(layer, ICConv2d) and type(layer) is nn.Conv2d and not layer.gain.any()
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert isinstance(nn.Linear(2, 3), ICLinear)
    lazy = nn.LazyConv2d(2, 3)
    lazy(x)
    assert type(pickle.loads(pickle.dumps(lazy))) is ICConv2d.basic_type

def test_silent_conv_cpu_float64():
    assert isinstance(nn.ConvTranspose3d(1, 1, 1), nn.modules.conv.ConvTranspose3d)
"""
OTHERS = "def test_pooling(): raise ValueError('it is no test of a convolution')"


def run(project: str, source: str, tmp_path: Path, *options: str) -> dict:
    for test in {
        "timm": ["tests/test_models.py"],
        "torchvision": ["test/test_models.py"],
        "torch": ["test/nn/test_convolution.py", "test/test_nn.py", "test/test_modules.py"],
    }[project]:
        (tmp_path / test).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / test).write_text(source)
        source = OTHERS
    program = "import sys, pathlib, upstream_tests as u; u.RESULTS = pathlib.Path(sys.argv[1]); u.main(sys.argv[2:])"
    command = [sys.executable, "-c", program, str(tmp_path), project, str(tmp_path), *options]
    subprocess.run(command, cwd=BENCHMARKS, capture_output=True)
    (written,) = tmp_path.glob("upstream_*.json")
    return json.loads(written.read_text()) | {"file": written.name}


@pytest.mark.slow
def test_timms_tests_get_ic_networks(tmp_path):
    found = run("timm", TIMM, tmp_path, "-n", "2")
    assert found["tests"] == {"test_fails": {"failed": 1}, "test_listed": {"passed": 1}, "test_named": {"skipped": 1}}
    assert found["total"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert list(found["failures"]) == ["test_fails"]
    assert "another" in found["failures"]["test_fails"]
    assert (found["file"], found["networks"]) == ("upstream_timm.json", "IC")


@pytest.mark.slow
def test_torchvisions_tests_get_ic_networks_of_the_same_function(tmp_path):
    assert run("torchvision", VISION, tmp_path)["total"] == {"passed": 1}


@pytest.mark.slow
def test_torchs_tests_get_silent_units(tmp_path):
    found = run("torch", TORCH, tmp_path)
    assert found["failures"] == {}
    assert found["tests"] == {"test_silent_conv": {"passed": 2}}


@pytest.mark.slow
def test_without_us_torchs_layers_are_torchs(tmp_path):
    assert run("torch", TORCH, tmp_path, "--basic")["total"] == {"failed": 1, "passed": 1}


@pytest.mark.slow
def test_without_us_nothing_is_changed(tmp_path):
    found = run("torchvision", VISION, tmp_path, "--basic")
    assert (found["total"], found["file"]) == ({"failed": 1}, "upstream_torchvision_basic.json")
    assert found["failures"] == {"test_function": "AssertionError: assert False"}
