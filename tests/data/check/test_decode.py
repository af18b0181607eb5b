from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icnets.data.check.decode import Item, inspect
from icnets.data.check.problems import printable


def image(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)


def kinds(path: Path, content: bytes, min_size: int = 0) -> list[str]:
    path.write_bytes(content)
    return [kind for kind, _ in inspect(Item(path.name, str(path), "all", "ant"), min_size).found]


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def test_sound_images(tmp_path: Path) -> None:
    for name, mode in (("a.jpg", "RGB"), ("a.jpg", "L"), ("a.JPEG", "RGB"), ("a.png", "RGB"), ("a.webp", "RGB")):
        file_format = {"jpg": "JPEG", "jpeg": "JPEG"}.get(name[2:].lower(), name[2:])
        assert kinds(tmp_path / name, encoded(image(mode), file_format), min_size=30) == []
    two = encoded(image(), "MPO", save_all=True, append_images=[image()])
    assert kinds(tmp_path / "camera.jpg", two) == []  # a JPEG to all who look at the first picture


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    for name, file_format in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP")):
        whole = encoded(image(), file_format)
        for part in (0.02, 0.3, 0.6, 0.9):
            assert set(kinds(tmp_path / name, whole[: int(part * len(whole))])) & {"truncated", "unreadable"}, part


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "mode"), ("LA", "mode"), ("P", "mode"), ("1", "mode"), ("I;16", "16-bit")],
)
def test_modes(tmp_path: Path, mode: str, kind: str) -> None:
    assert kinds(tmp_path / "a.png", encoded(image("L").convert(mode), "PNG")) == [kind]


def test_several_things_at_once(tmp_path: Path) -> None:
    content = encoded(image("CMYK", (8, 40)), "JPEG")
    assert kinds(tmp_path / "a.png", content, min_size=9) == ["wrong-extension", "small", "cmyk"]


def test_bombs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(image(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert kinds(tmp_path / "a.png", content[:100]) == ["huge"]  # 1,200 pixels; the rest isn't missed
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert kinds(tmp_path / "a.png", content) == ["bomb"]


def test_files_that_vanish(tmp_path: Path) -> None:
    for listed in (True, False):
        found = inspect(Item("gone.jpg", str(tmp_path / "gone.jpg"), "all", "ant", listed)).found
        assert found == [("unreadable", "No such file or directory")]


def test_names_of_strangers() -> None:
    assert printable("é 1\x1b[31m\n\udc80") == "é 1\\x1b[31m\\n\\udc80"
