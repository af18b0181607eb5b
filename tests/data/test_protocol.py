from pathlib import Path

import pytest

from icnets.data.data_module import ImageData
from training.folders import write_classes


def test_the_protocol_of_a_folder(tmp_path: Path) -> None:
    data = ImageData(write_classes(tmp_path, ant=8, bee=8), image_size=16, crop_pct=0.5, interpolation="bicubic")
    assert data.protocol() == (
        f"protocol: shorter side bicubic to 32, the centre crop of 16 pixels; {tmp_path}, "
        f"{data.size('test')} images, one label an image"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 0.0}, "crop_pct is 0.0; it must be greater than 0 and at most 1"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**options)


def test_the_protocol_of_digits() -> None:
    assert ImageData().protocol() == "protocol: handwritten digits, whole, 8 pixels; 797 images, one label an image"
