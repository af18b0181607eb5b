"""What is refused, in words, with no file left behind."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.export.artifacts import IMAGE, SUFFIX, needs, tiny
from icnets import create_model
from icnets.deploy.export.engines import open_artifact
from icnets.export import export


def test_artifact_beyond_the_tolerance_is_not_kept(tmp_path: Path) -> None:
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
    ("format", "package"),
    [("onnx", "onnxruntime"), ("openvino", "openvino")],
)
def test_missing_package_is_named_with_its_extra(
    format: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(format)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"format {format}.* needs {package}: pip install 'icnets\[export\]'"):
        export(tiny(), tmp_path / f"net{SUFFIX[format]}", format, IMAGE)


def test_an_artifact_of_aotinductor_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.aoti.pt2", "w") as archive:
        archive.writestr("net/data/aotinductor/model/net.so", b"")
    with pytest.raises(ValueError, match=r"compiled by AOTInductor, .* dropped: export as torch-export") as caught:
        open_artifact(tmp_path / "net.aoti.pt2")
    assert "\n" not in str(caught.value)


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
        ({"format": "tflite"}, "format is 'tflite'; it must be one of onnx, openvino, torch-export"),
        ({"path": "net.onnx"}, "for the format torch-export it must end in .pt2"),
        ({"int8": True}, "int8 is for the format onnx, not for torch-export"),
        ({"tolerance": float("nan")}, "allowed is nan: it isn't kept"),
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


@pytest.mark.slow
def test_unsteady_network_is_told_from_a_bad_artifact(tmp_path: Path) -> None:
    needs("onnx")
    torch.manual_seed(0)
    model = create_model("ic_mobilenetv2_100", num_classes=5)  # untrained: its float32 rounding is 1 % of its output
    with pytest.raises(ValueError, match="does it amplify rounding"):
        export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="of an untrained deep network, whose float32 is unsteady"):
        export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 3, 32, 32), fuse=False)
    assert not list(tmp_path.iterdir())


def test_network_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model[-1].bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="isn't finite"):
        export(model, tmp_path / "net.pt2", "torch-export", IMAGE, fuse=False)
