"""What the program reads, small enough to be read 200 times, and how it is told to."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils import tensorboard  # noqa: F401 - here and below: imported once, and not in every run

import icnets
from icnets.checkpoint.safetensors_file import CheckpointError
from icnets.cli import fit as lightning_cli  # noqa: F401
from icnets.cli import main
from icnets.training.run_checkpoints import last_checkpoints, read_checkpoint

__all__ = ["CASES", "Case", "prepare"]

_IMAGE_SUFFIXES = (".png", ".jpg", ".webp")
_NETWORK = {"channels": [4, 8, 8, 8], "stem_width": 4}
_CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {"model": "resnet10t", "model_options": _NETWORK, "optimizer": "adamw", "lr": 0.01},
    "data": {"train_size": 40, "image_size": 16, "batch_size": 20},
}
_TAUGHT = {
    "teacher": "basic.safetensors",
    "distillation": {"class_path": "icnets.WeakLogitDistillation", "init_args": {"temperature": 2.0}},
}
_EPOCH = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
_PHOTOS = ["--data.train_size", "null", "--data.batch_size", "4", "--data.in_chans", "3"]


@dataclass(frozen=True)
class Case:
    """One way in which files are read.

    Attributes:
        kind: of the files.
        name: of what reads them.
        files: patterns of those that may be damaged.
        run: is called in the folder; returns the exit status.
        result: what came of it.
        valid: tells of (name, whole content, damaged content) whether the latter is one that nobody can find fault
            with: such as an image that decodes to other pixels.
    """

    kind: str
    name: str
    files: tuple[str, ...]
    run: Callable[[], int]
    result: Callable[[], str]
    valid: Callable[[bytes, bytes], bool]


# The files.


def _write_photos(root: Path, rng: np.random.Generator) -> None:
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                path = root / split / name / f"{name}{i}{_IMAGE_SUFFIXES[i % 3]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((48, 40)).save(path)


def prepare(folder: Path) -> None:
    """Write all of it to ``folder``, the working directory: it trains a network for that."""
    _write_photos(folder / "photos", np.random.default_rng(0))
    taught = {**_CONFIG, "model": {**_CONFIG["model"], **_TAUGHT}}
    for name, config in (("digits", _CONFIG), ("taught", taught)):
        text = "# A network that is as small as can be.\n" + yaml.safe_dump(config, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    fit = ["fit", "--config", "digits.yaml", "--name", "run", "--trainer.max_epochs", "2", "--keep", "2"]
    if main(fit):
        raise ValueError("the network that is damaged afterwards couldn't be trained")
    shutil.copy(folder / "runs/run/checkpoints/best.safetensors", folder / "basic.safetensors")
    if main(["convert", "basic.safetensors", "ic.safetensors"]):
        raise ValueError("the network couldn't be converted")


# What came of it.


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    parts = (f"{name}{value.dtype}{tuple(value.shape)}{value.tolist()}" for name, value in sorted(tensors.items()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _weights(path: str) -> str:
    return _digest(load_file(path))


def _last_weights(folder: str) -> str:
    return _digest(read_checkpoint(last_checkpoints(Path(folder))[0])["state_dict"])


def _logits(path: str) -> str:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return _digest({"logits": icnets.load(path)(torch.randn(2, 1, 16, 16, generator=generator))})


def _printed() -> str:
    """What the run has printed, without what differs from run to run."""
    text = Path("stdout").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if re.search(r"test/|error|warning", line))


# What can't be told from what was meant.


def _decodes(before: bytes, after: bytes) -> bool:
    try:
        Image.open(BytesIO(after)).convert("RGB")
    except Exception:
        return False
    return True


def _other_options(before: bytes, after: bytes) -> bool:
    try:
        return bool(yaml.safe_load(after) != yaml.safe_load(before))
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


def _never(before: bytes, after: bytes) -> bool:
    return False


# The ways in.


def _load(path: str) -> int:
    """``icnets.load``, whose errors are for a program to show."""
    try:
        icnets.load(path)
    except CheckpointError as error:
        print(f"icnets: error: {error}", file=sys.stderr)
        return 2
    return 0


def _cli(*args: str) -> Callable[[], int]:
    return partial(main, list(args))


def _fit(*args: str, config: str = "digits.yaml") -> Callable[[], int]:
    return _cli("fit", "--config", config, "--name", "new", *args, *_EPOCH)


_NEW, _OLD = (partial(_last_weights, f"runs/{name}/checkpoints") for name in ("new", "run"))
_STEPS = ("runs/run/checkpoints/*.ckpt",)
_PICTURES = ("photos/*/*/*",)
_WEIGHTS = ("basic.safetensors", "ic.safetensors")
_START = ["--model.init_from", "basic.safetensors", "--model.model", "ic_resnet10t"]
_AGAIN = ["--name", "run", "--trainer.max_epochs", "3"]

CASES = [
    Case("images", "fit", _PICTURES, _fit("--data.root", "photos", *_PHOTOS), _NEW, _decodes),
    Case(
        "images", "fit, 3 may be unreadable", _PICTURES,
        _fit("--data.root", "photos", *_PHOTOS, "--data.max_unreadable", "3"), _NEW, _decodes,
    ),
    Case("Lightning checkpoints", "fit --ckpt_path last", _STEPS, _cli("fit", *_AGAIN, "--ckpt_path", "last"), _OLD,
         _never),
    Case("Lightning checkpoints", "test --ckpt_path best", ("runs/run/checkpoints/best.safetensors",),
         _cli("test", "--name", "run", "--ckpt_path", "best"), _printed, _never),
    Case("icnets checkpoints", "icnets.load", ("ic.safetensors",), partial(_load, "ic.safetensors"),
         partial(_logits, "ic.safetensors"), _never),
    Case("icnets checkpoints", "convert", ("basic.safetensors",), _cli("convert", "basic.safetensors",
         "new.safetensors"), partial(_weights, "new.safetensors"), _never),
    Case("icnets checkpoints", "init_from", ("basic.safetensors",), _fit("--model.init_from", "basic.safetensors"),
         _NEW, _never),
    Case("icnets checkpoints", "teacher", ("basic.safetensors",), _fit(config="taught.yaml"), _NEW,
         _never),
    Case("YAML", "fit", ("taught.yaml",), _fit(config="taught.yaml"), _NEW, _other_options),
]  # fmt: skip
