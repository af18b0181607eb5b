"""A data set in ImageNet's shape, sound and broken, and what ``icnets data check`` says of it."""

import csv
import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagenet_like
from icnets.cli import main
from icnets.data.check import KINDS
from icnets.data.shards import Shards
from imagenet_like import Sample, Settings, encoded, samples, write
from imagenet_like_broken import add_broken

SETTINGS = Settings(classes=4, train=6, val=2, scale=0.1, shards=2)
MANY = Settings(classes=4, train=24, val=2, scale=0.1, shards=2)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set; not to be written to."""
    out = tmp_path_factory.mktemp("sets") / "clean"
    write(out, SETTINGS)
    return out


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "broken"
    write(out, MANY)
    add_broken(out, MANY, 8)
    return out


def checked(root: Path, csv_file: Path, *options: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit status, and (path, kind) of every problem."""
    status = main(["data", "check", str(root), "--csv", str(csv_file), *options])
    with open(csv_file, newline="", encoding="utf-8") as file:
        return status, sorted((row["path"], row["kind"]) for row in csv.DictReader(file))


def members(out: Path, split: str) -> list[tuple[str, bytes]]:
    found = []
    for path in sorted((out / "shards").glob(f"{split}-*.tar")):
        with tarfile.open(path, "r:") as tar:
            assert [member.name for member in tar] == sorted(tar.getnames(), key=lambda n: (n[:-4], n.endswith(".cls")))
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_and_folders_hold_the_same_bytes(clean: Path, split: str) -> None:
    content = members(clean, split)
    images, labels = content[::2], content[1::2]
    assert [name.removesuffix(".jpg") for name, _ in images] == [name.removesuffix(".cls") for name, _ in labels]
    in_shards = sorted((data, int(label)) for (_, data), (_, label) in zip(images, labels, strict=True))
    in_folders = sorted(((clean / s.path).read_bytes(), s.label) for s in samples(SETTINGS, split))
    assert in_shards == in_folders
    order = [int(label) for _, label in labels]
    assert order != sorted(order)  # classes are mixed


def test_layout(clean: Path) -> None:
    assert (clean / "train" / "n00000001" / "n00000001_00005.JPEG").is_file()
    assert [p.name for p in sorted((clean / "shards").iterdir())] == [
        "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
    assert sum(path.is_file() for path in clean.rglob("*")) == 4 * (6 + 2) + 3 + 1


def test_a_stopped_run_goes_on_to_the_same_bytes(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings, sample: Sample) -> bytes:
        if sample.label == 2:
            raise KeyboardInterrupt
        return encoded(settings, sample)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet_like, "encoded", fail)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set", SETTINGS)
    write(tmp_path / "set", SETTINGS, workers=2)
    files = {p.relative_to(clean): p.read_bytes() for p in clean.rglob("*") if p.is_file()}
    assert {
        p.relative_to(tmp_path / "set"): p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()
    } == files
    with pytest.raises(ValueError, match=r"was written with .*; give another folder"):
        write(tmp_path / "set", Settings(classes=4, train=6, val=2, scale=0.2, shards=2))


def test_sizes_and_classes() -> None:
    settings = Settings(scale=0.2)
    images = [Image.open(BytesIO(encoded(settings, Sample("train", 7, n)))) for n in range(25)]
    widths, heights = zip(*(image.size for image in images), strict=True)
    assert len(set(zip(widths, heights, strict=True))) > 20
    assert 80 < np.median(widths) < 120
    assert 60 < np.median(heights) < 95

    def hues(label: int, number: int) -> np.ndarray:
        image = Image.open(BytesIO(encoded(settings, Sample("val", label, number)))).convert("RGB").resize((32, 32))
        center = np.asarray(image.crop((10, 10, 22, 22)).convert("HSV"))[..., 0]
        return np.histogram(center, 32, (0, 256))[0] / center.size

    labels = range(5)
    means = np.stack([np.mean([hues(label, n) for n in range(8)], axis=0) for label in labels])
    hits = [np.argmin(((means - hues(label, n)) ** 2).sum(1)) == label for label in labels for n in range(8, 12)]
    assert np.mean(hits) > 0.6  # by hue alone; chance is 0.2


def test_a_clean_set_has_no_problems(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(clean, tmp_path / "folders.csv") == (0, [])
    assert "24 train and 8 val images in 4 classes; 0 errors, 0 warnings" in capsys.readouterr().out
    assert len(Shards([str(path) for path in (clean / "shards").glob("*.tar")], tmp_path)) == 24 + 8


def test_a_broken_set_has_exactly_the_listed_problems(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [(entry["path"], entry["kind"]) for entry in json.loads((broken / "broken.json").read_text())]
    assert {kind for _, kind in listed} == {*KINDS, "shard"}
    in_folders = sorted(entry for entry in listed if not entry[0].startswith("shards/"))
    assert checked(broken, tmp_path / "folders.csv", "--workers", "1") == (1, in_folders)
    report = capsys.readouterr().out
    assert checked(broken, tmp_path / "again.csv", "--workers", "3") == (1, in_folders)
    assert capsys.readouterr().out == report.replace("folders.csv", "again.csv")
    assert (tmp_path / "folders.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    refused = [path for path, kind in listed if kind == "shard"]
    assert len(refused) == 8
    for path in refused:
        with pytest.raises(ValueError, match=Path(path).name):
            Shards([str(broken / path)], tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--classes", "2", "--train", "3", "--val", "1", "--scale", "0.05", "--shards", "1", "--workers", "1"]
    imagenet_like.main([str(tmp_path / "set"), *sizes, "--broken", "1"])
    assert "3 of 8 images" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "set" / "broken.json").read_text())) == 6 + 1 + 3 + 3 + 2
    with pytest.raises(SystemExit, match="2"):
        imagenet_like.main([str(tmp_path / "other"), "--classes", "0"])
    assert "classes is 0; it must be at least 1" in capsys.readouterr().err
