"""A data set in ImageNet's shape."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagenet_like
from imagenet_like import Sample, Settings, encoded, write

SETTINGS = Settings(classes=4, train=6, val=2, scale=0.1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set; not to be written to."""
    out = tmp_path_factory.mktemp("sets") / "clean"
    write(out, SETTINGS)
    return out


def test_layout(clean: Path) -> None:
    assert (clean / "train" / "n00000001" / "n00000001_00005.JPEG").is_file()
    assert sum(path.is_file() for path in clean.rglob("*")) == 4 * (6 + 2) + 1


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
        write(tmp_path / "set", Settings(classes=4, train=6, val=2, scale=0.2))


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


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--classes", "2", "--train", "3", "--val", "1", "--scale", "0.05", "--workers", "1"]
    imagenet_like.main([str(tmp_path / "set"), *sizes])
    assert "3 of 8 images" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        imagenet_like.main([str(tmp_path / "other"), "--classes", "0"])
    assert "classes is 0; it must be at least 1" in capsys.readouterr().err
