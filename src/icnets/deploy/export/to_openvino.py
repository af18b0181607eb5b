"""OpenVINO's files (.xml with a .bin beside it), by way of ONNX."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn
from torch.export import ExportedProgram

from icnets.deploy.export import lowering, to_onnx
from icnets.deploy.export.engine_base import Engine
from icnets.deploy.export.parity import Runner


class OpenVino(Engine):
    """Weights in float32; notes in the section model_info, where OpenVINO's own tools keep theirs."""

    suffix = ".xml"
    companions = (".bin",)
    packages = ("openvino", "onnx", "onnxscript")

    def lower(self, network: nn.Module) -> nn.Module:
        """Writes the rank-one terms as convolutions; a sign is part of the convolution before it."""
        return lowering.lower_(network, scale_by_convolution=False)

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        proto = to_onnx.to_proto(program)
        # Core.read_model, not convert_model: the same reader, without the telemetry of the latter.
        model = _openvino().Core().read_model(proto.SerializeToString())
        for key, value in notes.items():
            model.set_rt_info(value, ["model_info", key])
        _openvino().save_model(model, path, compress_to_fp16=False)

    def read(self, path: Path) -> Runner:
        # Without the hint, CPUs with bfloat16 compute in it.
        compiled = _openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: [torch.from_numpy(y.copy()) for y in compiled(x.numpy()).values()]

    def notes(self, path: Path) -> dict[str, str]:
        model = _openvino().Core().read_model(path)
        if not model.has_rt_info(["model_info"]):
            return {}
        return {key: str(value.astype(str)) for key, value in model.get_rt_info(["model_info"]).astype(dict).items()}


def _openvino() -> ModuleType:
    """OpenVINO, imported so that it sends nothing: it reports its import to its makers, unless in somebody's CI."""
    with patch.dict(os.environ, CI="true"):
        import openvino
    return openvino
