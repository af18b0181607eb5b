"""The demo's folder: whole or not there, the same every time, and a network with what ImageNet taught it."""

import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import demo_photos
from icnets.data.data_module import ImageData
from trained.networks import lite0

pytest.importorskip("elpv_dataset")


def _files(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_the_photographs_are_split_once_and_for_all(tmp_path: Path) -> None:
    root = demo_photos.write_photos(tmp_path / "a", train=5, test=3)
    names = list(_files(root))
    assert len({Path(name).name for name in names}) == len(names) == 16  # no photograph in both parts
    again = demo_photos.write_photos(tmp_path / "b", train=5, test=3)
    assert _files(again).keys() == _files(root).keys()
    data = ImageData(root=root, image_size=32)
    data.setup()
    assert data.class_names == ["defective", "functional"]
    assert data.size("test") == 6
    with Image.open(root / sorted(names)[0]) as image:
        assert (image.mode, image.size) == ("L", (300, 300))
    assert "CC BY-NC-SA 4.0" in (root / "LICENCE.txt").read_text(encoding="utf-8")


def test_what_is_there_stays_and_what_is_damaged_is_written_anew(tmp_path: Path) -> None:
    root = demo_photos.write_photos(tmp_path / "photos", train=3, test=2)
    before = _files(root)
    assert _files(demo_photos.write_photos(root, train=3, test=2)) == before
    os.truncate(root / next(iter(before)), 10)
    demo_photos.write_photos(root, train=3, test=2)
    assert all((root / name).stat().st_size > 10 for name in before)
    assert os.listdir(tmp_path) == ["photos"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(demo_photos.shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space"):
        demo_photos.write_photos(tmp_path / "photos", train=3, test=2)
    assert os.listdir(tmp_path) == []


def test_more_photographs_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"300 \+ 100 images of each class are wanted, but 313 are defective"):
        demo_photos.write_photos(tmp_path / "photos", train=300, test=100)


def test_the_weights_are_those_that_imagenet_gave(tmp_path: Path) -> None:
    basic, x = lite0()
    path = demo_photos.write_weights(tmp_path / "lite0.safetensors")
    model = timm.create_model(demo_photos.NETWORK).eval()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(model(x[:2]), basic(x[:2]))
    written = path.stat().st_mtime_ns
    assert demo_photos.write_weights(path).stat().st_mtime_ns == written
