"""OpenVINO's files (.xml with a .bin beside it), by way of ONNX; OpenVINO's NNCF quantises them."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.deploy.export import lowering, to_onnx
from icnets.deploy.export.engine_base import Engine
from icnets.deploy.export.parity import Runner


class OpenVino(Engine):
    """Weights in float32; notes in the section model_info, where OpenVINO's own tools keep theirs."""

    suffix = ".xml"
    companions = (".bin",)
    packages = ("openvino", "onnx", "onnxscript")
    quantize_packages = ("nncf",)
    quantizes = True

    def lower(self, network: nn.Module) -> nn.Module:
        """Writes the rank-one terms as convolutions; a sign is part of the convolution before it."""
        return lowering.lower_(network, scale_by_convolution=False)

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        proto = to_onnx.to_proto(program)
        # Core.read_model, not convert_model: the same reader, without the telemetry of the latter.
        _save(_openvino().Core().read_model(proto.SerializeToString()), path, notes)

    def read(self, path: Path) -> Runner:
        # Without the hint, CPUs with bfloat16 compute in it.
        compiled = _openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(x: Tensor) -> list[Tensor]:
            result = compiled(x.numpy())
            return [torch.from_numpy(result[i].copy()) for i in range(len(compiled.outputs))]

        return run

    def notes(self, path: Path) -> dict[str, str]:
        model = _openvino().Core().read_model(path)
        if not model.has_rt_info(["model_info"]):
            return {}
        return {key: str(value.astype(str)) for key, value in model.get_rt_info(["model_info"]).astype(dict).items()}

    def quantize(self, source: Path, target: Path, images: Sequence[Tensor], notes: Mapping[str, str]) -> None:
        """Quantises by NNCF, symmetrically throughout.

        With zero points (NNCF's preset for PReLU) OpenVINO 2026.4 gets units wrong that follow a unit without a
        rectifier in between, by most of the output's range where symmetric activations cost 3 % of it.
        """
        nncf = _nncf()
        from nncf.quantization.advanced_parameters import OverflowFix

        with redirect_stdout(sys.stderr):  # its progress bar
            quantized = nncf.quantize(
                _openvino().Core().read_model(source),
                nncf.Dataset([x.numpy() for x in images]),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(images),
                # Half of the weights' range everywhere: without VNNI instructions products of the full one saturate.
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            )
        _save(quantized, target, notes)


def _save(model: Any, path: Path, notes: Mapping[str, str]) -> None:
    for key, value in notes.items():
        model.set_rt_info(value, ["model_info", key])
    _openvino().save_model(model, path, compress_to_fp16=False)


# Both report their import and use to their makers, without asking, unless they believe to be in somebody's CI.


def _openvino() -> ModuleType:
    """OpenVINO, imported so that it sends nothing."""
    with _environment(CI="true"):
        import openvino
    return openvino


def _nncf() -> ModuleType:
    """NNCF, imported so that it sends nothing."""
    with _environment(NNCF_CI="1", CI="true"):
        import nncf

    # Not by nncf.set_log_level, which also changes handlers of others on this logger, such as pytest's.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in values if name in before})
