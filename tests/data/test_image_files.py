"""Every format that Pillow reads is read, what isn't is said, and no hostile file stops or stains a run."""

import io
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icnets.data.data_module import ImageData
from icnets.data.folders import find_images
from icnets.data.image_files import decode, image_extensions, images_below, left_out_line, reason
from icnets.data.protocol import EvaluationTransform
from icnets.predict.inference import find_paths
from training.folders import write_classes, write_image

OLD = (".jpg", ".jpeg", ".png")
NEW = (".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".tga", ".jp2", ".JPE", ".GIF", ".Tif", ".mpo")
NONE = r"no images \(\.jpg, \.png, \.webp, \.\.\.\) in "


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("icnets")]


def picture(seed: int = 0, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# Formats.


def test_what_pillow_decodes_itself_is_read() -> None:
    found = image_extensions()
    assert {*OLD, *(end.lower() for end in NEW), ".apng", ".qoi", ".psd", ".ico"} <= found
    assert not found & {".pdf", ".eps", ".ps", ".wmf", ".h5", ".mpg", ".txt", ".npy", ".json", ".csv", ""}
    assert (".avif" in found) == (".avif" in Image.registered_extensions())


def test_a_plugin_that_is_registered_later_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    image_extensions()
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert ".heic" in image_extensions()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two classes of images in many formats, and files that are none."""
    root = write_classes(tmp_path / "mixed", ant=4, bee=4)
    for i, suffix in enumerate(NEW):
        picture(i).save(root / "ant" / f"n{i}{suffix}", format="JPEG" if suffix == ".mpo" else None)
    for name in ("a.txt", "b.TXT", "c.npy", "d", ".hidden.png", "._d.jpg", "Thumbs.db", "desktop.ini"):
        (root / "bee" / name).write_bytes(b"no image")
    (root / "__MACOSX").mkdir()
    return root


def test_every_way_to_the_images_reads_the_same_and_says_what_not(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "left out: 2 .txt, 1 .npy, 1 without an extension"
    listing = find_images(mixed)
    assert [len(images_below(mixed / name, Counter())) for name in listing.class_names] == [4 + len(NEW), 4]
    assert lines(caplog) == [f"{mixed}: {said}"]
    assert find_paths([str(mixed)]) == sorted(listing.paths)
    assert lines(caplog)[1:] == [f"{mixed}: {said}"]
    data = ImageData(mixed, image_size=16, batch_size=2)
    assert sum(data.size(split) for split in ("train", "val", "test")) == len(listing.paths)
    for x, target in (*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        assert x.isfinite().all()
        assert (target >= 0).all()


def test_a_folder_of_the_usual_images_is_listed_as_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_classes(tmp_path / "r", ant=3, Bee=2, **{"10": 2, "2": 2})
    write_image(root / "ant" / "deep" / "er" / "x.PNG")
    write_image(root / "ant" / "a.jpeg")
    write_image(root / ".cache" / "x.png")
    listing = find_images(root)
    assert listing.class_names == ["10", "2", "Bee", "ant"]
    by_pathlib = [
        p for name in listing.class_names for p in sorted((root / name).rglob("*")) if p.suffix.lower() in OLD
    ]
    assert listing.paths == by_pathlib
    assert lines(caplog) == []


def test_a_class_without_images_says_what_it_has(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "r", ant=2)
    (root / "bee").mkdir()
    for i in range(3):
        (root / "bee" / f"{i}.heic").touch()
        (root / "bee" / f"image{i}").touch()
    with pytest.raises(
        ValueError,
        match=NONE + r"class folder 'bee' of .*: 3 \.heic, 3 without an extension",
    ):
        find_images(root)
    with pytest.raises(ValueError, match=NONE + r".*/bee; left out: 3 \.heic, 3 without"):
        find_images(root / "bee", classes=False)
    many = Counter(f".{i % 20:02}" for i in range(40))
    assert left_out_line(many).endswith(".07, 24 others")


def encoded(kind: str, seed: int = 0, **options: Any) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, kind, **options)
    return file.getvalue()


# Hostile files.


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def saved(image: Image.Image, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
HOSTILE: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "bomb.png": (png(50_000, 50_000), "exceeds limit of 178956970 pixels"),
    "large.png": (png(12_000, 12_000), "truncated"),  # of which Pillow warns
    "zero.png": (png(0, 5), "it is no image by its content"),
    "thin.png": (saved(picture(size=(1, 5000))), "it has 5000 × 1 pixels"),
    "empty.jpg": (b"", "it is no image by its content"),
    "text.jpg": (b"hello", "it is no image by its content"),
    "cut.jpg": (encoded("JPEG")[:300], "truncated"),
    "cut.webp": (encoded("WEBP")[:100], ""),
    "cut.gif": (encoded("GIF")[:400], ""),
    "script.jpg": (POSTSCRIPT, "it is no image by its content"),  # Ghostscript would run it
    "deep.tif": (saved(Image.fromarray(np.zeros((9, 9), np.uint16))), "more than 8 bits a channel"),
    "float.tif": (saved(Image.fromarray(np.zeros((9, 9), np.float32))), "more than 8 bits a channel"),
}
ODD: dict[str, Image.Image] = {
    "cmyk.jpg": picture(mode="CMYK"), "alpha.png": picture(mode="RGBA"), "grey.png": picture(mode="LA"),
    "bits.tif": picture(mode="1"), "palette.gif": picture(mode="P"), "lab.tif": picture(mode="LAB"),
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    root = write_classes(tmp_path / "hostile", ant=30, bee=30)
    for name, (content, _) in HOSTILE.items():
        if isinstance(content, bytes):
            (root / "ant" / name).write_bytes(content)
        else:
            content(root / "ant" / name)
    for name, image in ODD.items():
        image.save(root / "ant" / name)
    picture().quantize().save(root / "ant" / "see-through.png", transparency=bytes(range(256)))
    with open(os.fsencode(root / "ant") + b"/\xff\xfe.png", "wb") as file:
        picture(7).save(file, "PNG")
    for name in ("pipe.jpg", "pipe.dat"):
        fifo(root / "ant" / name)
    for name, target in {"zero.png": "/dev/zero", "loop.png": "loop.png", "gone.png": "none.png", "up": "..",
                         "self": ".", "pipe.link": "pipe.dat"}.items():  # fmt: skip
        (root / "bee" / name).symlink_to(target)
    return root


GOOD = 60 + len(ODD) + 2


def test_hostile_files_are_counted_in_training(hostile: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"can't read the image .*; 1 images can't be read, and .* is 0: repair"):
        list(ImageData(hostile, image_size=16, batch_size=8).train_dataloader())
    caplog.clear()
    data = ImageData(hostile, image_size=16, batch_size=8, max_unreadable=len(HOSTILE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            for x, _ in loader:
                assert x.isfinite().all()
    names = {name.rpartition("/")[2] for name in data.unreadable()}
    assert names <= HOSTILE.keys()
    assert all(name.encode() for name in data.names("test"))  # each can be written
    assert lines(caplog)[0] == f"{hostile}: left out: 4 that are no files, 2 links to folders, 1 .dat, 1 .link"
    assert len(lines(caplog)) == 1 + len(names)


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_file_has_its_reason(hostile: Path, name: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the decoder raises, it has a reason in one line
        EvaluationTransform(16).read(hostile / "ant" / name)
    assert HOSTILE[name][1].lower() in reason(caught.value).lower()
    assert "\n" not in reason(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_cut_is_noticed(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB" if kind != "WEBP" else "RGBA").save(file, kind)
    decode(io.BytesIO(file.getvalue()))
    for part in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(Exception):  # noqa: B017, PT011 - decoders raise whatever they stumble over
            decode(io.BytesIO(file.getvalue()[: int(part * len(file.getvalue()))]))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    fifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it is no file"):
        decode(tmp_path / "a.png")


def test_a_large_file_is_not_taken_into_memory(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "r", ant=1, bee=1)
    with open(root / "ant" / "large.tif", "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(OSError, match="cannot identify image file") as caught:
        decode(root / "ant" / "large.tif")
    assert reason(caught.value) == "it is no image by its content"


def test_links_in_circles_end(hostile: Path) -> None:
    assert len(find_paths([str(hostile)])) == GOOD + len(HOSTILE)


def test_class_names_are_text(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "r", ant=2, **{"größe, 大": 2})
    assert find_images(root).class_names == ["ant", "größe, 大"]
    write_classes(Path(os.fsdecode(os.fsencode(root) + b"/\xff")), ant=1)
    with pytest.raises(ValueError, match=r"names of 1 class folders of .* are no UTF-8: '\\udcff'; rename them"):
        find_images(root)
