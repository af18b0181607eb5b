"""ONNX by PyTorch's exporter; ONNX Runtime reads it back and quantises it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from icnets.deploy.export.lowering import RANK_ONE

INPUT = "input"


def quantize(source: Path, target: Path, images: Sequence[Tensor], notes: Mapping[str, str]) -> None:
    """Writes the int8 artifact of a float32 one, calibrated on images: Q/DQ around convolutions and matrix products.

    What is around them stays float32: it is a few per cent of the work, and the sums ``s`` span a range that 8 bits
    would coarsen for every channel at once.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter([{INPUT: x.numpy()} for x in images])
    calibration = type("Images", (CalibrationDataReader,), {"get_next": lambda self: next(batches, None)})
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    # The pair of types for which there are fast instructions; with 7 bits of weight they can't saturate on CPUs without
    # VNNI, where the artifact may well be run, but isn't proved.
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
    operators = ["Conv", "Gemm", "MatMul"]
    quantize_static(prepared, target, calibration(), op_types_to_quantize=operators, per_channel=True, **types)
    prepared.unlink()
    save(onnx.load(target), target, notes, check=False)


def session(path: Path) -> Any:
    """Opens a file in ONNX Runtime, on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def save(proto: Any, path: Path, notes: Mapping[str, str], check: bool = True) -> None:
    """Writes a model with ``notes`` instead of whatever it noted."""
    import onnx

    proto.ClearField("metadata_props")
    onnx.helper.set_model_props(proto, dict(notes))
    if check:
        onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


# The model.


def to_proto(program: ExportedProgram) -> Any:
    """``program`` as an ONNX ModelProto: input "input", output "output" (or "output_0", ...), dynamic axis "batch"."""
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
    options |= {"input_names": [INPUT], "output_names": names, "dynamic_shapes": ({0: "batch"},)}
    exported = torch.onnx.export(program, **options)
    assert exported is not None
    proto: Any = exported.model_proto
    graph = proto.graph
    # What the exporter notes for its own developers goes: source files, line by line.
    for noted in (proto, graph, *graph.input, *graph.output, *graph.value_info, *graph.node):
        noted.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
    return proto


def join_residuals(proto: Any) -> None:
    """Rewrites ``(z + rank_one) + shortcut`` as ``(z + shortcut) + rank_one``, in place.

    ONNX Runtime computes a sum inside of a convolution, and the rectifier behind it, but not where the convolution has
    an activation already, as z's own does. As it was, the rectifier behind the block was a pass over memory; now both
    are inside of the rank-one convolution.
    """
    graph = proto.graph
    kernel = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "Conv"}
    rank_one = {name for name, weight in kernel.items() if f".{RANK_ONE}." in f".{weight}"}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    adds = [node for node in graph.node if node.op_type == "Add"]
    inner = {node.output[0]: node for node in adds if len(rank_one.intersection(node.input)) == 1}
    late = {}
    for outer in adds:
        name = next((name for name in outer.input if name in inner and readers[name] == 1), None)
        if name is None:
            continue
        first = inner[name]
        (z,) = set(first.input) - rank_one
        (shortcut,) = set(outer.input) - {name}
        outer.input[:] = [name, *rank_one.intersection(first.input)]
        first.input[:] = [z, shortcut]
        late[name] = first
    # What the first sums read now may be made later than they stood, so they move to what reads them.
    rest = [node for node in graph.node if node.output[0] not in late]
    nodes = [one for node in rest for one in (*(late[name] for name in node.input if name in late), node)]
    graph.ClearField("node")
    graph.node.extend(nodes)


def put_clips_into_convolutions(proto: Any) -> None:
    """Puts a depthwise convolution that changes nothing between a unit's sum and the clip behind it (ReLU6), in place.

    ONNX Runtime computes a clip inside of a convolution, but not where a sum is inside of it as well: by itself, it
    would leave the blocked layout and come back to it, which takes three times as long.
    """
    import onnx

    graph = proto.graph
    made = {node.output[0]: node for node in graph.node}
    kernels = {value.name: value.dims for value in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    nodes = []
    for node in graph.node:
        add = made.get(node.input[0]) if node.op_type == "Clip" else None
        if add is not None and add.op_type == "Add" and readers[node.input[0]] == 1:
            convolutions = [made[name] for name in add.input if name in made and made[name].op_type == "Conv"]
            if convolutions:
                channels, _, *window = kernels[convolutions[0].input[1]]
                name, ones = f"{node.input[0]}_same", [1.0] * channels
                shape = [channels, 1, *[1] * len(window)]
                kernel = onnx.helper.make_tensor(f"{name}.weight", onnx.TensorProto.FLOAT, shape, ones)
                graph.initializer.append(kernel)
                same = onnx.helper.make_node("Conv", [node.input[0], kernel.name], [name], name=name, group=channels)
                nodes.append(same)
                node.input[0] = name
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
