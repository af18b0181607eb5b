"""What is exported has the form that the engine runs fastest, and the same function."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.export.artifacts import needs, small_network
from icnets import ICConv2d, fuse_, ic_parameters
from icnets.deploy.export.lowering import lower_
from icnets.export import export


def units() -> nn.Module:
    """Every shape of window and groups, with signs, slopes per channel, and units without a collision."""
    torch.manual_seed(1)
    geometry: list[dict[str, Any]] = [
        {"kernel_size": 5, "stride": 2, "padding": 2},
        {"kernel_size": 1, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": "same", "dilation": 2, "padding_mode": "reflect"},
        {"kernel_size": (3, 1), "padding": (1, 0), "groups": 4},
        {"kernel_size": 3, "padding": 1, "groups": 16, "stride": (1, 2)},
        {"kernel_size": 1, "groups": 16},
        {"kernel_size": 2},
    ]
    layers: list[nn.Module] = []
    for i, options in enumerate(geometry):
        layers += [ICConv2d(16 if i else 1, 16, **options), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, ICConv2d(16, 16, 1, gain=0.5, collision_weight=0.0), nn.BatchNorm2d(16))
    for norm in (m for m in model if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for name, parameter in ic_parameters(model):
        if not name.startswith(f"{len(model) - 2}."):
            nn.init.normal_(parameter, std=0.3)
    mixed = model[-5]
    assert isinstance(mixed, ICConv2d)
    mixed.gain = nn.Parameter(torch.linspace(-0.5, 2, 16))
    return model.eval()


@pytest.mark.parametrize("scale_by_convolution", [True, False])
def test_lowered_units_equal_the_deployed_ones(scale_by_convolution: bool) -> None:
    model = units()
    fused = copy.deepcopy(model)
    fuse_(fused, torch.randn(2, 1, 24, 24))
    lowered = lower_(fused, scale_by_convolution)
    names = {name.rpartition(".")[2] for name, _ in lowered.named_modules()}
    assert names >= {"total", "rank_one", "unit"}
    assert ({"scale", "bend"} <= names) is scale_by_convolution
    assert ({"scale", "bend"} & names == set()) is not scale_by_convolution
    for shape in ((3, 1, 24, 24), (1, 1, 21, 27)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_unit_in_two_places_is_lowered_once() -> None:
    unit = ICConv2d(4, 4, 3, padding=1, collision_weight=0.2).eval()
    model = nn.Sequential(unit, nn.ReLU(), unit)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = model(x)
        fuse_(model, x)
        lowered = lower_(model, True)
        torch.testing.assert_close(lowered(x), expected)
    assert lowered[0] is lowered[2]


@pytest.mark.slow
def test_residual_sums_are_computed_inside_of_convolutions(tmp_path: Path) -> None:
    needs("onnx")
    import onnx
    import onnxruntime

    path, optimised = tmp_path / "net.onnx", tmp_path / "optimised.onnx"
    export(small_network("ic_resnet18"), path, "onnx", torch.zeros(1, 3, 32, 32))
    before = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert before.keys() <= {"Conv", "LeakyRelu", "PRelu", "Relu", "Add", "MaxPool", "ReduceMean", "Reshape", "Gemm"}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    after = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert after["Conv"] == before["Conv"]
    assert after["Add"] == after["Relu"] == after["LeakyRelu"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("format", "name"), [("onnx", "a.onnx"), ("openvino", "a.xml"), ("torch-export", "a.pt2")])
def test_one_number_for_all_dimensions_reaches_no_engine(tmp_path: Path, format: str, name: str) -> None:
    needs(format)
    layers = [ICConv2d(3, 8, 3, padding=(1,), stride=(2,)), ICConv2d(8, 8, 3, padding=(2,), dilation=(2,), groups=2)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1, stride=(2,))).eval()
    for _, parameter in ic_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    for fuse in (True, False):
        report = export(model, tmp_path / name, format, torch.randn(2, 3, 16, 16), fuse=fuse)
        assert report.parity
    assert layers[0].stride == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [None, 0.0], ids=["one slope", "slopes of each channel"])
def test_nothing_leaves_onnx_runtimes_blocked_layout(gain: float | None, tmp_path: Path) -> None:
    """Neither slopes of each channel nor a clip behind a unit: a pass through another layout costs three of its own."""
    needs("onnx")
    import onnx
    import onnxruntime

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(3):
        layers += [ICConv2d(32, 32, 1, bias=False, gain=gain), nn.BatchNorm2d(32), nn.ReLU6()]
    model = nn.Sequential(*layers, nn.Conv2d(32, 4, 1)).eval()
    for norm in (m for m in model if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
    for _, parameter in ic_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    path, optimised = tmp_path / "net.onnx", tmp_path / "optimised.onnx"
    assert export(model, path, "onnx", torch.zeros(1, 3, 16, 16)).max_relative_error < 1e-4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert found["Conv"] >= 11
    assert found["PRelu"] == found["Clip"] == found["ReorderInput"] == 0
    assert found["ReorderOutput"] <= 1 + 3  # of the result, and of the sums s, which have one channel


def test_a_clip_is_put_behind_a_convolution_that_changes_nothing(tmp_path: Path) -> None:
    needs("onnx")
    torch.manual_seed(0)
    model = nn.Sequential(ICConv2d(3, 8, 3, padding=1, gain=0.0), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    for _, parameter in ic_parameters(model):
        nn.init.normal_(parameter)
    import onnx

    assert export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 3, 8, 8)).max_relative_error < 1e-4
    graph = onnx.load(tmp_path / "net.onnx").graph
    made = {node.output[0]: node for node in graph.node}
    (clip,) = (node for node in graph.node if node.op_type == "Clip")
    assert made[clip.input[0]].op_type == "Conv"
    assert not any(node.op_type == "PRelu" for node in graph.node)
