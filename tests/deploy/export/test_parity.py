"""Artifacts equal the network at any batch."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deploy.export.artifacts import IMAGE, SUFFIX, assert_equal_outputs, needs, randomised, small_network, tiny
from icnets import create_model
from icnets.deploy.export.engines import ENGINES
from icnets.export import export
from icnets.timm_models import FAMILIES

# One of each family, every other as ONNX, the rest in the other formats: all of them in all formats take an hour.
EXPORTED = sorted(f"ic_{names.split()[0]}" for names in FAMILIES.values())
CASES = list(zip(EXPORTED, itertools.cycle(("onnx", "openvino", "onnx", "torch-export"))))
SIZES = {"ic_inception_v3": 192}  # with fewer places its statistics are too few, and float32's own error is 4e-5


@pytest.mark.parametrize("format", ["onnx", *(pytest.param(f, marks=pytest.mark.slow) for f in list(ENGINES)[1:])])
def test_artifact_equals_the_network_at_any_batch(format: str, tmp_path: Path) -> None:
    needs(format)
    model, path = small_network("ic_resnet18"), tmp_path / f"net{SUFFIX[format]}"
    report = export(model, path, format, torch.zeros(1, 3, 32, 32))
    assert_equal_outputs(model, path, format, (3, 32, 32))
    assert report.max_relative_error < 1e-4
    assert [(p.inputs, p.batch) for p in report.parity] == [("random", 1), ("random", 7)]
    assert report.size == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert {f.suffix for f in tmp_path.iterdir()} == {SUFFIX[format], *ENGINES[format].companions}
    assert f"{report.max_error:.2g}" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("format", ENGINES)
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


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("name", "format"), CASES)
def test_every_network_in_a_format(
    name: str, format: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    needs(format)
    size = SIZES.get(name, 128)
    model, path = randomised(create_model(name, num_classes=10), size), tmp_path / f"net{SUFFIX[format]}"
    report = export(model, path, format, torch.zeros(1, 3, size, size))
    print(f"\n{name} {format}: {report.max_error:.3g} absolute, {report.max_relative_error:.3g} relative")
    record_property("error", report.max_error)
    assert_equal_outputs(model, path, format, (3, size, size))
