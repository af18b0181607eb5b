import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icnets import ICConv2d, create_model, ic_parameters, save
from icnets.export import export, main
from icnets.export.core import require_one_answer
from icnets.export.engines import ENGINES
from icnets.timm_models import NETWORKS

SUFFIX = {name: engine.suffix for name, engine in ENGINES.items()}
BUILT_QUICKLY = ["onnx", "openvino", "torch-export"]  # AOTInductor's compiler takes its time


def needs(format: str) -> None:
    for package in (*ENGINES[format].packages, *ENGINES[format].quantize_packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")


def randomised(model: nn.Module) -> nn.Module:
    """Batch norms and collisions as a training leaves them, both signs included, and a signal that keeps its size."""
    generator = torch.Generator().manual_seed(3)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * normal(module.weight))
                module.weight[::5] *= -1
                module.bias.copy_(0.2 * normal(module.bias))
        for _, parameter in ic_parameters(model):
            parameter.add_(0.3 * normal(parameter))
        # The statistics that belong to these weights: without them a deep network's output overflows or dies.
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 0.5
        shape = (4, *model.pretrained_cfg["input_size"][:1], 64, 64) if hasattr(model, "pretrained_cfg") else None
        for _ in range(4) if shape else ():
            model.train()(torch.randn(shape, generator=generator))
    return model.eval()


def tiny(classes: int = 3) -> nn.Module:
    """Dense, grouped, depthwise and strided units; with and without batch norm, bias and a rectifier behind them."""
    return nn.Sequential(
        ICConv2d(2, 8, 3, padding=1, bias=False, collision_weight=0.05),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        ICConv2d(8, 8, 3, stride=2, padding=1, groups=2, collision_weight=-0.1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        ICConv2d(8, 8, 3, padding=1, groups=8, gain=0.5, collision_weight=0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


def small_network(name: str) -> nn.Module:
    sizes: dict[str, Any] = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)} if name == "ic_resnet18" else {}
    return randomised(create_model(name, num_classes=5, **sizes))


IMAGE = torch.zeros(1, 2, 12, 12)


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tests' own imports of the engines."""
    monkeypatch.setenv("CI", "true")


def load_artefact(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """The artefact as a user of the engine loads it, apart from the library's own way."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
    if format == "openvino":
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())
    if format == "torch-export":
        return torch.export.load(path).module()
    return torch._inductor.aoti_load_package(str(path))


def assert_equal_outputs(model: nn.Module, path: Path, format: str, shape: tuple[int, ...]) -> None:
    run = load_artefact(path, format)
    for batch in (1, 7, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected, found = model(x), run(x)
        assert found.shape == expected.shape
        span = float(expected.max() - expected.min())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * span)


# Parity.


@pytest.mark.parametrize("format", BUILT_QUICKLY)
@pytest.mark.parametrize("name", ["ic_resnet18", pytest.param("ic_mobilenetv2_100", marks=pytest.mark.slow)])
def test_artefact_equals_the_network_at_any_batch(name: str, format: str, tmp_path: Path) -> None:
    needs(format)
    model, path = small_network(name), tmp_path / f"net{SUFFIX[format]}"
    report = export(model, path, format, torch.zeros(1, 3, 32, 32))
    assert_equal_outputs(model, path, format, (3, 32, 32))
    assert report.max_relative_error < 1e-4
    assert [(p.inputs, p.batch) for p in report.parity] == [("random", 1), ("random", 7)]
    assert report.size == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert {f.suffix for f in tmp_path.iterdir()} == {SUFFIX[format], *ENGINES[format].companions}
    assert f"{report.max_error:.2g}" in str(report)


def test_compiled_package_equals_the_network_at_any_batch(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "net.pt2"
    export(model, path, "aoti", IMAGE, metadata={"mean": [0.5, 0.5]})
    assert_equal_outputs(model, path, "aoti", (2, 12, 12))
    notes = torch._inductor.aoti_load_package(str(path)).get_metadata()
    assert json.loads(notes["mean"]) == [0.5, 0.5]
    assert json.loads(notes["input_size"]) == [2, 12, 12]


@pytest.mark.parametrize("format", BUILT_QUICKLY)
def test_own_graph_equals_the_network_too(format: str, tmp_path: Path) -> None:
    needs(format)
    model, path = tiny(), tmp_path / f"net{SUFFIX[format]}"
    assert not export(model, path, format, IMAGE, fuse=False).fused
    assert_equal_outputs(model, path, format, (2, 12, 12))


def test_several_outputs_keep_their_order(tmp_path: Path) -> None:
    needs("onnx")
    import onnxruntime

    model = create_model("ic_resnet18", features_only=True, channels=(4, 8, 8, 8), layers=(1, 1, 1, 1)).eval()
    export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 3, 32, 32))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    x = torch.randn(3, 3, 32, 32)
    found = session.run([f"output_{i}" for i in range(5)], {"input": x.numpy()})
    with torch.no_grad():
        for one, other in zip(model(x), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-4)


def test_real_images_are_compared_as_well(tmp_path: Path) -> None:
    batches = [(torch.rand(4, 2, 12, 12), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    report = export(tiny(), tmp_path / "net.pt2", "torch-export", IMAGE, evaluation_data=batches)
    assert [(p.inputs, p.batch) for p in report.parity] == [("random", 1), ("random", 7), ("real", 1), ("real", 7)]
    assert "7 real" in str(report)


def test_the_network_stays_as_it_is(tmp_path: Path) -> None:
    model = tiny().train()
    modules = [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "net.pt2", "torch-export", IMAGE)
    assert all(m.training for m in model.modules())
    assert [type(m) for m in model.modules()] == modules
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


# What is in the files.


def test_onnx_has_standard_operators_notes_and_no_trace_of_its_maker(tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    path = tmp_path / "net.onnx"
    export(tiny(), path, "onnx", IMAGE, metadata={"class_names": ["a", "b", "c"], "source": "text"})
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    operators = {node.op_type for node in proto.graph.node}
    assert operators & {"PRelu", "LeakyRelu"}
    assert "BatchNormalization" not in operators
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, [d.dim_value for d in shape[1:]]) == ("batch", [2, 12, 12])
    notes = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(notes["class_names"]) == ["a", "b", "c"]
    assert notes["source"] == "text"
    assert (json.loads(notes["input_size"]), json.loads(notes["fused"])) == ([2, 12, 12], True)
    for secret in (str(Path(__file__).parents[1]), "site-packages", "stack_trace"):
        assert secret.encode() not in path.read_bytes()


def test_own_operators_are_refused() -> None:
    needs("onnx")
    from onnx import TensorProto, helper

    from icnets.export.to_onnx import require_standard

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    for domain, fine in (("", True), ("acme.ops", False)):
        node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
        proto = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
        if fine:
            require_standard(proto)
        else:
            with pytest.raises(ValueError, match=r"acme\.ops::Relu"):
                require_standard(proto)


def test_notes_of_the_other_formats(tmp_path: Path) -> None:
    needs("openvino")
    import openvino

    export(tiny(), tmp_path / "net.xml", "openvino", IMAGE, metadata={"std": [2.0, 3.0]})
    model = openvino.Core().read_model(tmp_path / "net.xml")
    assert json.loads(model.get_rt_info(["model_info", "std"]).astype(str)) == [2.0, 3.0]
    export(tiny(), tmp_path / "net.pt2", "torch-export", IMAGE, metadata={"std": [2.0, 3.0]})
    extra = {"icnets.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert json.loads(json.loads(extra["icnets.json"])["std"]) == [2.0, 3.0]
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "net.pt2").read_bytes()


def test_engines_are_imported_without_reporting_home(tmp_path: Path) -> None:
    needs("openvino")
    code = """
import os
from icnets.export.to_openvino import _nncf, _openvino
before = dict(os.environ)
_openvino(), _nncf()
assert before == os.environ
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NNCF_CI")} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "intel").exists()  # where the identification of this user would be kept


# int8.


Batches = list[tuple[Tensor, Tensor]]


def patterns(count: int, seed: int) -> Batches:
    """Three classes that a convolution tells apart: horizontal stripes, vertical ones, a checkerboard."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    i, j = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    images = torch.stack([i % 2, j % 2, (i + j) % 2]).float()[label].unsqueeze(1).repeat(1, 2, 1, 1)
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    return list(zip(images.split(32), label.split(32), strict=True))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for x, label in patterns(1024, seed=0) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_keeps_the_accuracy(trained: nn.Module, format: str, tmp_path: Path) -> None:
    needs(format)
    path, test = tmp_path / f"net{SUFFIX[format]}", patterns(300, seed=2)
    report = export(
        trained, path, format, IMAGE, int8=True, calibration_data=patterns(128, seed=1), evaluation_data=test
    )
    run = load_artefact(path, format)
    x, label = torch.cat([x for x, _ in test]), torch.cat([y for _, y in test])
    with torch.no_grad():
        before = float((trained(x).argmax(1) == label).float().mean())
    after = float((run(x).argmax(1) == label).float().mean())
    assert before > 0.95
    assert after >= before - 0.02
    agreement = report.agreement
    assert agreement is not None
    assert agreement.images == 300
    assert agreement.accuracy_before == pytest.approx(before)
    assert agreement.accuracy_after == pytest.approx(after)
    assert run(x[:1]).shape == (1, 3)
    assert [(p.inputs, p.batch) for p in report.int8_parity] == [("real", 1), ("real", 7)]
    worst = max(p.relative for p in report.int8_parity)
    assert 1e-4 < worst < 0.2  # it is quantised, and not broken
    assert f"{100 * before:.2f}% before" in str(report)
    assert sorted(f.suffix for f in tmp_path.iterdir()) == sorted([SUFFIX[format], *ENGINES[format].companions])
    assert_int8_inside(path, format)


def assert_int8_inside(path: Path, format: str) -> None:
    if format == "onnx":
        import onnx

        proto = onnx.load(path)
        assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in proto.graph.node}
        assert {n.domain for n in proto.graph.node} == {""}
        assert json.loads({p.key: p.value for p in proto.metadata_props}["int8"]) is True
        weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
        assert len(weights) == 3
    else:
        assert path.read_text().count('type="FakeQuantize"') >= 2
        assert 'element_type="i8"' in path.read_text()


def test_int8_without_labels_counts_changed_classes(trained: nn.Module, tmp_path: Path) -> None:
    needs("onnx")
    images = [x for x, _ in patterns(64, seed=1)]
    report = export(trained, tmp_path / "net.onnx", "onnx", IMAGE, int8=True, calibration_data=iter(images))
    assert report.agreement is not None
    assert report.agreement.accuracy_before is None
    assert report.agreement.same_class > 0.95
    assert "of 64 images changed their class" in str(report)


def test_int8_that_collapses_is_not_kept(trained: nn.Module, tmp_path: Path) -> None:
    needs("onnx")
    dark = [(1e-4 * x, y) for x, y in patterns(64, seed=1)]  # ranges in which no real image fits
    with pytest.raises(ValueError, match=r"int8 loses \d+\.\d+ pp.*more representative"):
        export(
            trained,
            tmp_path / "net.onnx",
            int8=True,
            example_input=IMAGE,
            calibration_data=dark,
            evaluation_data=patterns(300, seed=2),
        )
    assert not list(tmp_path.iterdir())


def test_int8_must_not_depend_on_the_batch() -> None:
    x = torch.rand(7, 2, 12, 12)
    require_one_answer(lambda x: [x.mean((2, 3))], x)
    with pytest.raises(ValueError, match=r"for an image alone differ by .* export it unfused"):
        require_one_answer(lambda x: [x.mean((2, 3)) * (1 if len(x) > 1 else 0.5)], x)


def test_int8_of_units_on_single_pixels_is_right_or_refused(tmp_path: Path) -> None:
    needs("openvino")
    torch.manual_seed(0)
    unit = ICConv2d(8, 8, 1, collision_weight=0.05)
    first = ICConv2d(2, 8, 3, collision_weight=0.05)
    model = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), unit, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    options: dict[str, Any] = {"int8": True, "calibration_data": [torch.randn(64, 2, 12, 12)], "max_loss": 1.0}
    for fuse in (True, False):
        try:
            report = export(model, tmp_path / "net.xml", "openvino", IMAGE, fuse=fuse, **options)
        except ValueError as error:
            assert fuse and "for an image alone" in str(error)  # noqa: PT017, PT018
            assert not list(tmp_path.iterdir())
        else:
            assert max(p.relative for p in report.int8_parity) < 0.1


# Failure.


def test_artefact_beyond_the_tolerance_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(ValueError, match=r"differs from the network by .* allowed is 1e-12: it isn't kept"):
        export(tiny(), path, "torch-export", IMAGE, tolerance=1e-12)
    assert not list(tmp_path.iterdir())
    path.write_text("what was there before")
    with pytest.raises(ValueError, match="isn't kept"):
        export(tiny(), path, "torch-export", IMAGE, tolerance=1e-12)
    assert [f.name for f in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_text() == "what was there before"
    export(tiny(), path, "torch-export", IMAGE)
    torch.export.load(path)


def test_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export(tiny(), tmp_path / "net.pt2", "torch-export", IMAGE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "package", "int8"),
    [("onnx", "onnxruntime", False), ("openvino", "openvino", False), ("openvino", "nncf", True)],
)
def test_missing_package_is_named_with_its_extra(
    format: str, package: str, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(format)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"format {format}.* needs {package}: pip install 'icnets\[export\]'"):
        export(tiny(), tmp_path / f"net{SUFFIX[format]}", format, IMAGE, int8=int8, calibration_data=[IMAGE])


def test_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"aoti needs a C\+\+ compiler"):
        export(tiny(), tmp_path / "net.pt2", "aoti", IMAGE)


class _Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


def _half() -> nn.Module:
    return tiny().half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite'; it must be one of onnx, openvino, torch-export, aoti"),
        ({"path": "net.onnx"}, "for the format torch-export it must end in .pt2"),
        ({"int8": True}, "int8 is for the formats onnx and openvino, not for torch-export"),
        ({"tolerance": 0.0}, "tolerance is 0.0; it must be positive"),
        ({"max_loss": 2.0}, "max_loss is 2.0"),
        ({"example_input": None}, "doesn't say how large its input is; give example_input"),
        ({"example_input": torch.zeros(1, 5, 12, 12)}, r"can't take a batch of shape \(2, 5, 12, 12\)"),
        ({"example_input": torch.zeros(3, dtype=torch.long)}, r"example_input is torch.int64 \(3,\)"),
        ({"model": _half()}, "is torch.float16; export takes float32 networks"),
        ({"model": _Branches()}, "torch.export can't take _Branches"),
        ({"model": _FixedBatch()}, "torch.export can't take _FixedBatch"),
        ({"evaluation_data": [torch.zeros(2, 2, 9, 9)]}, r"have shape \(2, 9, 9\), those to export for \(2, 12, 12\)"),
        ({"evaluation_data": [(torch.zeros(2, 2, 12, 12), torch.zeros(3).long())]}, "2 images and 3 labels"),
        ({"metadata": {"fused": 1}}, "metadata has fused, which export writes itself"),
        ({"metadata": {"mean": torch.zeros(1)}}, "metadata must be plain data"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"model": tiny(), "format": "torch-export", "example_input": IMAGE, "path": "net.pt2", **change}
    if not isinstance(arguments["model"], nn.Sequential):
        arguments["fuse"] = False
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        export(**arguments)
    assert not list(tmp_path.iterdir())


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .* doesn't exist"):
        export(tiny(), tmp_path / "nowhere" / "net.pt2", "torch-export", IMAGE)
    with pytest.raises(TypeError, match="example_input is a list"):
        export(tiny(), tmp_path / "net.pt2", "torch-export", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a batch is a str"):
        export(tiny(), tmp_path / "net.pt2", "torch-export", IMAGE, evaluation_data=["x"])
    needs("onnx")
    for data in (None, []):
        with pytest.raises(ValueError, match="int8 is calibrated on images"):
            export(tiny(), tmp_path / "net.onnx", "onnx", IMAGE, int8=True, calibration_data=data)


def test_unsteady_network_is_told_from_a_bad_artefact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("ic_mobilenetv2_100", num_classes=5)  # untrained: its float32 rounding is 1 % of its output
    with pytest.raises(ValueError, match="in float32 the network itself is off by"):
        export(model, tmp_path / "net.pt2", "torch-export", torch.zeros(1, 3, 32, 32))
    assert not list(tmp_path.iterdir())


def test_network_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model[-1].bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="isn't finite"):
        export(model, tmp_path / "net.pt2", "torch-export", IMAGE, fuse=False)


# The command.


@pytest.fixture(scope="module")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the embedded digits, with what ``icnets fit`` notes; trained just enough to tell them apart."""
    from icnets.training.data import ImageData

    torch.manual_seed(0)
    data = ImageData(image_size=16)
    model = create_model("ic_resnet18", num_classes=10, in_chans=1, channels=(8, 8, 16, 16), layers=(1, 1, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        for x, label in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), label).backward()
            optimizer.step()
    notes = {k: ",".join(map(str, getattr(data, k))) for k in ("class_names", "mean", "std")}
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    save(model.eval(), path, metadata={**notes, "image_size": "16", "in_chans": "1"})
    return path


def test_command_exports_a_checkpoint(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("onnx")
    monkeypatch.chdir(tmp_path)
    assert main([str(digits_checkpoint), "--int8"]) == 0
    said = capsys.readouterr().out
    assert "digits.onnx: onnx, int8, fused" in said
    assert "7 real" in said
    assert "of 797 images changed their class" in said
    import onnx

    notes = {p.key: p.value for p in onnx.load("digits.onnx").metadata_props}
    assert json.loads(notes["class_names"]) == [str(i) for i in range(10)]
    assert json.loads(notes["input_size"]) == [1, 16, 16]
    assert len(json.loads(notes["mean"])) == len(json.loads(notes["std"])) == 1
    with pytest.raises(ValueError, match=r"digits\.onnx exists already"):
        main([str(digits_checkpoint)])


def test_command_exports_a_named_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pt2"
    sizes = ["--image-size", "32", "--num-classes", "3", "--in-chans", "1"]
    arguments = ["ic_resnet18", "--format", "torch-export", *sizes]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "torch-export, float32, fused" in capsys.readouterr().out
    assert load_artefact(out, "torch-export")(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert main([*arguments, "--out", str(out), "--force", "--no-fuse"]) == 0
    assert "torch-export, float32," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ic_resnet18 --format tflite", "invalid choice: 'tflite'"),
        ("ic_resnet18 --int8 --num-classes 2 --image-size 32", "give --data.root DIR"),
        ("ic_resnet18 --image-size 0", "--image-size is 0"),
        ("ic_resnet18 --format aoti --int8", "int8 is for the formats"),
        ("no_such_net", "no network 'no_such_net'"),
        ("missing.safetensors", "there is no checkpoint missing.safetensors"),
        ("{digits} --num-classes 3", "--num-classes goes with a network's name"),
        ("{digits} --data.root {root}", "give images of the same classes"),
    ],
)
def test_command_refuses(arguments: str, message: str, digits_checkpoint: Path, tmp_path: Path) -> None:
    needs("onnx")
    from training.folders import write_classes

    if "{root}" in arguments:
        write_classes(tmp_path / "images", cat=4, dog=4)
    words = arguments.format(digits=digits_checkpoint, root=tmp_path / "images").split()
    with pytest.raises(ValueError, match=message):
        main([*words, *(["--out", str(tmp_path / "net.onnx")] if "aoti" not in words else [])])
    assert not (tmp_path / "net.onnx").exists()


# Every registered network.


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("format", list(ENGINES))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_in_every_format(
    name: str, format: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    needs(format)
    model, path = randomised(create_model(name, num_classes=10)), tmp_path / f"net{SUFFIX[format]}"
    report = export(model, path, format, torch.zeros(1, 3, 64, 64))
    print(f"\n{name} {format}: {report.max_error:.3g} absolute, {report.max_relative_error:.3g} relative")
    record_property("error", report.max_error)
    assert_equal_outputs(model, path, format, (3, 64, 64))
