"""int8 keeps the accuracy, or isn't kept."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.export.artifacts import IMAGE, load_artifact, needs, tiny
from icnets.export import export

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


@pytest.mark.slow
def test_int8_keeps_the_accuracy(trained: nn.Module, tmp_path: Path) -> None:
    needs("onnx")
    path, test = tmp_path / "net.onnx", patterns(300, seed=2)
    report = export(
        trained, path, "onnx", IMAGE, int8=True, calibration_data=patterns(128, seed=1), evaluation_data=test
    )
    run = load_artifact(path, "onnx")
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
    assert 1e-4 < worst < 0.05  # it is quantised, and not broken
    assert f"{100 * before:.2f}% before" in str(report)
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]
    assert_int8_inside(path)


def assert_int8_inside(path: Path) -> None:
    import onnx

    proto = onnx.load(path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in proto.graph.node}
    assert {n.domain for n in proto.graph.node} == {""}
    assert json.loads({p.key: p.value for p in proto.metadata_props}["int8"]) is True
    weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == 3


@pytest.mark.slow
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
