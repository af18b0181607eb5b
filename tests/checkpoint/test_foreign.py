"""Files of weights that others wrote: read where they hold plain data, otherwise named, with the remedy."""

import argparse
import gzip
import json
import pathlib
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from icnets import CheckpointError, load
from icnets.checkpoint.foreign import read_weights
from icnets.checkpoint.image_notes import ImageNotes
from icnets.open_network import notes_of_start
from icnets.training.run_checkpoints import read_checkpoint


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


STATE = network().state_dict()
OTHER = {key: value + 1 for key, value in STATE.items()}


def prefixed(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


# Trainers' checkpoints, what of them is to be read, and what is said of it.
CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "a state dict": (STATE, ""),
    "timm": ({"epoch": 3, "arch": "resnet18", "state_dict": STATE, "metric": 71.0}, "['state_dict']"),
    "an average, which comes first": ({"state_dict": OTHER, "state_dict_ema": STATE}, "['state_dict_ema']"),
    "torchvision": (
        {"model": OTHER, "model_ema": prefixed("module.") | {"n_averaged": torch.ones(1)}},
        "['model_ema'",
    ),
    "DDP": ({"model": prefixed("module.")}, "['model'] and keys without 'module.'"),
    "compiled DDP": (prefixed("module._orig_mod."), "keys without 'module.'"),
    "Lightning": ({"state_dict": {**prefixed("net."), "loss.weight": torch.ones(2)}}, "keys without 'net.'"),
    "nested": ({"ema": {"decay": 0.9, "shadow": STATE}, "model": OTHER}, "['ema']['shadow']"),
    "an average without weights": ({"ema": {"decay": 0.9}, "state_dict": STATE}, "['state_dict']"),
    "an unknown name": ({"backbone_weights": STATE, "step": 1}, "['backbone_weights']"),
    "an optimizer beside it": ({"model": STATE, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, "['model']"),
}


@pytest.mark.parametrize(("content", "origin"), CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_and_said_where(content, origin, zipped, tmp_path):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / "a.pth", STATE)
    assert origin in weights.origin if origin else not weights.origin
    assert STATE.keys() <= weights.state.keys()
    assert all(torch.equal(weights.state[key], value) for key, value in STATE.items())


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path):
    save_file(STATE, tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert torch.equal(read_weights(tmp_path / name).state["0.weight"], STATE["0.weight"])
    with pytest.raises(CheckpointError, match=r"is a pickle of torch\.save, not .* icnets convert makes one of it"):
        load(tmp_path / "a.safetensors", network())


class Recipe:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"best": np.float64(76.1)}, r"numpy\._?core\.multiarray\.scalar"),
        ({"args": argparse.Namespace(lr=0.1)}, r"argparse\.Namespace"),
        ({"path": pathlib.PurePosixPath("runs")}, r"pathlib\.PurePosixPath"),
        ({"namespace": types.SimpleNamespace(a=1)}, r"types\.SimpleNamespace"),
        ({"hyper_parameters": Recipe()}, r"[\w.]*Recipe"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_objects_are_named_with_the_remedy(beside, named, zipped, tmp_path):
    torch.save({"state_dict": STATE, **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"a\.pth holds objects \({named}") as caught:
        read_weights(tmp_path / "a.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert "damaged" not in message
    call = message.partition("weights alone: ")[2]
    with pytest.MonkeyPatch.context() as patch:  # what the message says to do works
        patch.chdir(tmp_path)
        eval(call, {"torch": torch})
        assert torch.equal(read_weights(Path("weights.pth")).state["0.weight"], STATE["0.weight"])


@pytest.mark.parametrize("make", [network, lambda: timm.create_model("test_resnet", num_classes=2)])
def test_a_whole_network_is_named_with_the_remedy(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make(), "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds a whole network \(\w+[\w.]+") as caught:
        read_weights(Path("a.pth"))
    eval(str(caught.value).partition("weights alone: ")[2], {"torch": torch})
    assert read_weights(Path("weights.pth")).state.keys() == make().state_dict().keys()


def test_a_checkpoint_of_another_trainer_is_no_run_to_resume(tmp_path):
    torch.save({"state_dict": STATE, "hyper_parameters": argparse.Namespace(lr=0.1)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"no checkpoint of icnets fit .*; weights alone are given as model.init_from"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert notes_of_start(tmp_path / "a.ckpt") == ImageNotes()


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        torch.jit.trace(network().eval(), torch.ones(1, 3, 4, 4)).save(str(path))


def cut(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    data[data.index(STATE["0.weight"].numpy().tobytes())] ^= 64
    path.write_bytes(bytes(data))


NO_WEIGHTS = "isn't a file of weights, but perhaps a web page, a pointer of Git LFS .*; fetch or unpack the file itself"

FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a script": (script, r"is a TorchScript archive; if you trust it, .*torch\.jit\.load\('a\.pth'\)\.state_dict"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid 1"), NO_WEIGHTS),
    "a page": (lambda p: p.write_text("\n<!DOCTYPE html><html>404</html>"), NO_WEIGHTS),
    "empty": (Path.touch, "is empty; fetch or write it again"),
    "a folder": (Path.mkdir, "is a folder; give the file of weights in it"),
    "missing": (lambda p: None, "there is no checkpoint .*check the path"),
    "another zip": (lambda p: zipfile.ZipFile(p, "w").close(), NO_WEIGHTS),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), NO_WEIGHTS),
    "text": (lambda p: p.write_text("lr: 0.1"), NO_WEIGHTS),
    "cut off": (cut, "is cut off; fetch or write it again"),
    "a flipped bit": (flipped, r"is damaged, .*checksum of .*; fetch or write it again"),
    "cut safetensors": (lambda p: (save_file(STATE, p), p.write_bytes(p.read_bytes()[:-9])), "is damaged"),
    "a list": (lambda p: torch.save([1, 2], p), "holds no state dict, but a list; write"),
    "numbers": (lambda p: torch.save({"lr": 0.1}, p), "holds no state dict, but lr; write"),
    "two": (lambda p: torch.save({"a": STATE, "b": STATE}, p), r"holds several state dicts \(\['a'\], \['b'\]\)"),
    "twice": (
        lambda p: torch.save({**prefixed("student."), **prefixed("teacher.")}, p),
        r"holds the network 2 times, under student\., teacher\.; write the one alone",
    ),
}


@pytest.mark.parametrize(("write", "message"), FILES.values(), ids=FILES)
def test_anything_else_is_said_in_one_line(write, message, tmp_path):
    write(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path / "a.pth", STATE)
    assert "\n" not in str(caught.value)
    if message.startswith(("is a", "isn't a", "is empty", "is cut", "there is no")) and "damaged" not in message:
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "a.pth", network())


def test_a_header_is_no_json(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((20).to_bytes(8, "little") + json.dumps({"a": 1})[:-1].encode())
    with pytest.raises(ValueError, match="is damaged, or no file of weights"):
        read_weights(tmp_path / "a.safetensors")
