"""ONNX by PyTorch's exporter; ONNX Runtime reads it back and quantises it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.deploy.export import lowering
from icnets.deploy.export.parity import Runner
from icnets.deploy.export.residuals import join_residuals

__all__ = ["annotate", "lower", "notes", "quantize", "read", "require_standard", "to_proto", "write"]

INPUT = "input"
BATCH = "batch"


def lower(network: nn.Module) -> nn.Module:
    """Rank-one terms and signs as convolutions, which ONNX Runtime computes in its blocked layout."""
    return lowering.lower_(network, scale_by_convolution=True)


def to_proto(program: ExportedProgram) -> Any:
    """``program`` as an ONNX ModelProto: input "input", output "output" (or "output_0", ...), dynamic axis "batch".

    Raises ValueError if an operator isn't of ONNX's standard.
    """
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, external_data=False, input_names=[INPUT], output_names=names
    )
    assert exported is not None
    proto = exported.model_proto
    _clean(proto)
    require_standard(proto)
    return proto


def _clean(proto: Any) -> None:
    """Names the batch, and drops what the exporter notes for its own developers: source files, line by line."""
    graph = proto.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")


def require_standard(proto: Any) -> None:
    """Raises ValueError for operators, or functions in their place, that aren't of ONNX's default domain."""
    domains = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if domains or proto.functions:
        strange = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain in domains})
        strange += sorted(f"{f.domain}::{f.name}" for f in proto.functions)
        raise ValueError(f"the graph has operators outside ONNX's standard: {', '.join(dict.fromkeys(strange))}")


def annotate(proto: Any, notes: Mapping[str, str]) -> None:
    """Writes ``notes`` into the model's metadata, in the place of what was there."""
    import onnx

    proto.ClearField("metadata_props")
    onnx.helper.set_model_props(proto, dict(notes))


def write(program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
    """One file with the weights in it; ``notes`` as metadata_props."""
    import onnx

    proto = to_proto(program)
    join_residuals(proto)
    annotate(proto, notes)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def read(path: Path) -> Runner:
    """Runs a file of :func:`write` or :func:`quantize` by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {INPUT: x.numpy()})]


def notes(path: Path) -> dict[str, str]:
    """What :func:`write` noted in the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


class _Images:
    """Calibration images, batch by batch, as ONNX Runtime asks for them."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._rest: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        x = next(self._rest, None)
        return None if x is None else {INPUT: x.numpy()}


def quantize(source: Path, target: Path, images: Sequence[Tensor], notes: Mapping[str, str]) -> None:
    """ONNX Runtime's static quantisation of ``source``, as Q/DQ pairs around convolutions and matrix products.

    What is around them stays float32: it is a few per cent of the work, and the sums ``s`` span a range that 8 bits
    would coarsen for every channel at once.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    CalibrationDataReader.register(_Images)
    prepared = target.with_suffix(".prepared.onnx")
    with _without_advice():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Images(images),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            # The pair of types for which there are fast instructions; with 7 bits of weight they can't saturate on
            # CPUs without VNNI, where the artefact may well be run, but isn't proved.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    prepared.unlink()
    proto = onnx.load(target)
    annotate(proto, notes)
    require_standard(proto)
    onnx.save(proto, target)


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser logs, on the root logger, that it wants the preparation which it has just had."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
