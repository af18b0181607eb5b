"""icnets export."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from deploy.export.artifacts import load_artifact, needs
from icnets import create_model, save
from icnets.cli.export import main


@pytest.fixture(scope="module")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the embedded digits, with what ``icnets fit`` notes; trained just enough to tell them apart."""
    from icnets.data.data_module import ImageData

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


@pytest.mark.slow
def test_command_exports_a_checkpoint(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("onnx")
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = Path("digits", "train" if i % 2 else "val", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(folder / f"{i}.png")
    assert main([str(digits_checkpoint), "--int8", "--data.root", "digits"]) == 0
    said = capsys.readouterr().out
    assert "digits.onnx: onnx, int8, fused" in said
    assert "7 real" in said
    assert "of 899 images changed their class" in said
    import onnx

    notes = {p.key: p.value for p in onnx.load("digits.onnx").metadata_props}
    assert json.loads(notes["class_names"]) == [str(i) for i in range(10)]
    assert json.loads(notes["input_size"]) == [1, 16, 16]
    assert len(json.loads(notes["mean"])) == len(json.loads(notes["std"])) == 1
    with pytest.raises(ValueError, match=r"digits\.onnx exists already"):
        main([str(digits_checkpoint)])


@pytest.mark.slow
def test_command_exports_a_named_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pt2"
    sizes = ["--image-size", "32", "--num-classes", "3", "--in-chans", "1"]
    arguments = ["ic_resnet18", "--format", "torch-export", *sizes]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "torch-export, float32, fused" in capsys.readouterr().out
    assert load_artifact(out, "torch-export")(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert main([*arguments, "--out", str(out), "--force", "--no-fuse"]) == 0
    assert "torch-export, float32," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ic_resnet18 --format tflite", "invalid choice: 'tflite'"),
        ("ic_resnet18 --int8 --num-classes 2 --image-size 32", "give --data.root DIR"),
        ("ic_resnet18 --image-size 0", "--image-size is 0"),
        ("ic_resnet18 --format openvino --int8 --out net.xml", "int8 is for the format onnx"),
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
        main([*words, *(["--out", str(tmp_path / "net.onnx")] if "--out" not in words else [])])
    assert not (tmp_path / "net.onnx").exists()
