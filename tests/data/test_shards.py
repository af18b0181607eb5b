import json
import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icnets.data.data_module import ImageData
from icnets.data.shards import Shards, expand, find_shards


def picture(seed: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def sample(key: str, label: int, seed: int, *, as_json: bool = False) -> dict[str, bytes]:
    target = {f"{key}.json": json.dumps({"label": label}).encode()} if as_json else {f"{key}.cls": str(label).encode()}
    return {f"{key}.png": picture(seed), **target}


def write_set(root: Path) -> Path:
    for shard in range(3):
        members: dict[str, bytes] = {}
        for i in range(4):
            members |= sample(f"a/{shard}{i}", (shard + i) % 3, 10 * shard + i, as_json=i == 2)
        write_shard(root / f"train-{shard}.tar", members)
    write_shard(root / "val.tar", sample("x", 0, 90) | sample("y", 2, 91))
    return root


def test_expand() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("https://host/{train,extra}-{0..1}.tar") == [
        f"https://host/{name}-{i}.tar" for name in ("train", "extra") for i in range(2)
    ]
    assert expand("plain.tar") == ["plain.tar"]


def test_images_and_classes(tmp_path: Path) -> None:
    shards = Shards(find_shards(write_set(tmp_path), "train"), tmp_path / "cache")
    assert shards.targets == [(shard + i) % 3 for shard in range(3) for i in range(4)]
    assert shards.open(6).read() == picture(12)  # type: ignore[union-attr]
    assert shards.name(6).endswith("train-1.tar: a/12.png")
    again = pickle.loads(pickle.dumps(shards))
    assert again.open(11).read() == picture(23)


def test_the_index_is_kept_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "train.tar", sample("x", 0, 1))
    Shards([str(path)], tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # nobody reads the shard again
        assert len(Shards([str(path)], tmp_path / "cache")) == 1
    write_shard(path, sample("x", 0, 1) | sample("y", 1, 2))
    assert len(Shards([str(path)], tmp_path / "cache")) == 2
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert len(Shards([str(path)], tmp_path / "cache")) == 2


def test_a_url(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train.tar", sample("x", 0, 1) | sample("y", 1, 2))
    shards = Shards([f"file://{path}"], tmp_path / "cache")
    assert shards.targets == [0, 1]
    assert shards.open(1).read() == picture(2)  # type: ignore[union-attr]
    assert shards.name(1) == f"file://{path}: y.png"
    with pytest.raises(ValueError, match="can't open the shard"):
        Shards([f"file://{tmp_path}/none.tar"], tmp_path / "cache")


def test_training_on_shards(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    options = {"image_size": 16, "batch_size": 4, "cache": tmp_path / "cache"}
    data = ImageData(tmp_path, **options)  # type: ignore[arg-type]
    data.prepare_data()
    assert data.class_names == ["ant", "bee", "cow"]
    assert [data.size(split) for split in ("train", "val", "test")] == [12, 2, 2]
    first = [t for batch in data.train_dataloader() for t in batch]
    pattern = f"{tmp_path}/train-{{0..2}}.tar"
    named = ImageData(train_shards=pattern, val_shards=str(tmp_path / "val.tar"), workers=2, **options)  # type: ignore[arg-type]
    second = [t for batch in named.train_dataloader() for t in batch]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert named.class_names == ["0", "1", "2"]
    names = [name for batch in range(3) for name in data.names_of_batch(0, batch)]
    assert len(set(names)) == 12


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": b"1"}, r"'x\.png' in the shard .*: no \.cls or \.json beside the image"),
        ({"x.png": b"1", "x.cls": b"one"}, r"'x\.cls' in the shard .*: its class is 'one'; it must be a whole number"),
        ({"x.png": b"1", "x.cls": b"-1"}, r"its class is '-1'; it must be a whole number"),
        ({"x.png": b"1", "x.cls": b"99999999999999999999"}, r"999'; it must be a whole number from 0, of 9 digits"),
        ({"x.png": b"1", "x.json": b"{}"}, r"its label is None; it must be a whole number"),
        ({"x.png": b"1", "x.jpg": b"1", "x.cls": b"0"}, r"'x\.jpg' in the shard .*: key x has an image already"),
        ({"../x.png": b"1"}, r"'\.\./x\.png' in the shard .*: leads out of its folder"),
        ({"/x.png": b"1"}, r"'/x\.png' in the shard .*: leads out of its folder"),
        ({"readme.txt": b"1"}, r"holds no images \(jpg, jpeg, png, webp, \.\.\.\)"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    path = write_shard(tmp_path / "train.tar", members)
    with pytest.raises(ValueError, match=message):
        Shards([str(path)], tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_damaged_shards(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train.tar", sample("x", 0, 1) | sample("y", 1, 2))
    content = path.read_bytes()
    assert content[2048:2053] == b"x.cls"
    for damaged in (content[:900], content[:1024], b"", b"x" * 2000, content[:2060] + b"?" * 40 + content[2100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"the shard .* is (damaged or no tar file|truncated)|in the shard"):
            Shards([str(path)], tmp_path / "cache")
    with pytest.raises(ValueError, match="there is no shard"):
        Shards([str(tmp_path / "none.tar")], tmp_path / "cache")


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_shard(tmp_path / "val.tar", sample("x", 7, 1))
    data = ImageData(tmp_path, image_size=16, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="the val shards have class 7, but the training shards have 0 to 2"):
        data.setup()
    (tmp_path / "val.tar").unlink()
    with pytest.raises(ValueError, match=r"has training shards but none for validation"):
        ImageData(tmp_path, cache=tmp_path / "cache").setup()
