"""The engines, by name: how each gets from a network to something that runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets import fuse_
from icnets.export import export
from networks import Family, build
from training_step import TrainingStep

__all__ = ["ENGINES", "Case", "Engine"]

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One network at one batch size; ``cache`` is the folder for what is compiled for it."""

    family: Family
    variant: str
    batch: int
    cache: Path
    threads: int

    def network(self) -> nn.Module:
        return build(self.family, self.variant)

    def images(self) -> Tensor:
        size = self.family.image_size
        return torch.randn(self.batch, 3, size, size, generator=torch.Generator().manual_seed(1))

    def artifact(self, format: str, suffix: str) -> Path:
        """The network's deployed form as :func:`icnets.export.export` writes it, made where it isn't there yet."""
        path = self.cache / f"{self.family.name}-{self.variant}{suffix}"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            export(self.network(), path, format, self.images())
        return path


@dataclass(frozen=True)
class Engine:
    """One way to run a network.

    Attributes:
        label: for tables.
        open: gives the function that is timed.
        packages: what it imports besides torch.
        prepared: ``open`` exports or compiles, and leaves what it made for the next time.
        training: takes steps of training; the short form's are of 8 images.
    """

    label: str
    open: Callable[[Case], Step]
    packages: tuple[str, ...] = ()
    prepared: bool = False
    training: bool = False

    def missing(self) -> list[str]:
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _run(model: Callable[[Tensor], Any], x: Tensor) -> Step:
    return torch.no_grad()(lambda: model(x))


def _eager(case: Case) -> Step:
    return _run(case.network(), case.images())


def _fused(case: Case) -> nn.Module:
    model = case.network()
    fuse_(model, case.images())
    return model


def _deployed(case: Case) -> Step:
    return _run(_fused(case), case.images())


# Not dynamic: what compiles one network alone must compile it the same beside its relatives, which share its code.


def _compiled(case: Case) -> Step:
    return _run(torch.compile(case.network(), dynamic=False), case.images())


def _deployed_compiled(case: Case) -> Step:
    return _run(torch.compile(_fused(case), dynamic=False), case.images())


def _onnx_runtime(case: Case) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    path = case.artifact("onnx", ".onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"input": case.images().numpy()}
    return lambda: session.run(None, feed)


def _openvino(case: Case) -> Step:
    os.environ.setdefault("CI", "true")  # or its import reports to its makers
    import openvino

    # Without the first, CPUs with bfloat16 compute in it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": case.threads}
    compiled = openvino.Core().compile_model(case.artifact("openvino", ".xml"), "CPU", options)
    x = case.images().numpy()
    return lambda: compiled(x)


def _training(
    case: Case, layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32
) -> Step:
    return TrainingStep(case.network(), case.images().contiguous(memory_format=layout), dtype)


_nhwc = partial(_training, layout=torch.channels_last)
_bf16 = partial(_nhwc, dtype=torch.bfloat16)
_ONNX = ("onnx", "onnxscript")

ENGINES = {
    "eager": Engine("eager", _eager),
    "deployed": Engine("deployed, eager", _deployed),
    "compile": Engine("torch.compile", _compiled, prepared=True),
    "deployed-compile": Engine("deployed, torch.compile", _deployed_compiled, prepared=True),
    "onnx": Engine("ONNX Runtime", _onnx_runtime, ("onnxruntime", *_ONNX), prepared=True),
    "openvino": Engine("OpenVINO", _openvino, ("openvino", "onnxruntime", *_ONNX), prepared=True),
    "training": Engine("training step, eager", _training, training=True),
    "training-nhwc": Engine("training step, channels last", _nhwc, training=True),
    "training-bf16": Engine("training step, channels last, bfloat16", _bf16, training=True),
}
