"""Each data set of the studies on a small sample, made here or shipped by a package."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from datafiles import write_cifar, write_folder
from icnets.comparison import runs
from icnets.support.named_code import imported
from studies.glyphs import CHARACTERS, render_folder

KINDS = {
    "mnist1d": "studies.mnist1d:MNIST1D",
    "solar": "studies.solar:SolarCells",
    "glyphs": "studies.glyphs:Glyphs",
    "cifar10": "studies.cifar:CIFAR10",
    "cifar100": "studies.cifar:CIFAR100",
}


def make_data(arguments: dict, seed: int, cache: Path | None = None):
    return runs.make_data(arguments, seed, cache=cache, imports=KINDS)


def _all(data, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def test_mnist1d(tmp_path: Path) -> None:
    pytest.importorskip("mnist1d")
    arguments = {"kind": "mnist1d", "train": 200, "val": 55, "test": 300, "batch_size": 20}
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the package draws from it
    data = make_data(arguments, 3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert [data.size(split) for split in ("train", "val", "test")] == [200, 55, 300]
    assert (data.num_classes, data.in_chans) == (10, 1)
    x, y = _all(data, "test")
    assert x.shape == (300, 1, 40)
    assert set(y.tolist()) == set(range(10))
    for _ in range(2):  # made, then read from the cache
        again, _ = _all(make_data(arguments, 3, tmp_path), "test")
        assert torch.equal(x, again)
    assert not torch.equal(x, _all(make_data(arguments, 4), "test")[0])


def test_mnist1d_can_be_told_apart() -> None:
    """Nearest class means beat chance (10 %) by far: inputs and targets belong together, in every split."""
    pytest.importorskip("mnist1d")
    data = make_data({"kind": "mnist1d", "train": 1000, "val": 50, "test": 500}, 0)
    batches = list(data.train_dataloader())
    x, y = torch.cat([x for x, _ in batches]).flatten(1), torch.cat([y for _, y in batches])
    means = torch.stack([x[y == c].mean(0) for c in range(10)])
    test, target = _all(data, "test")
    right = (torch.cdist(test.flatten(1), means).argmin(1) == target).float().mean().item()
    assert right > 0.18


@pytest.mark.slow
def test_solar_cells(tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    arguments = {"kind": "solar", "image_size": 16, "limit": 500, "batch_size": 32, "hflip": True, "vflip": True}
    folds = [make_data(arguments, seed, tmp_path) for seed in range(6)]
    tests = [_all(data, "test") for data in folds]
    assert all(data.folds == 5 and data.num_classes == 2 for data in folds)
    assert sum(len(y) for _, y in tests[:5]) == 500
    # Folds of one repetition share no image; the sixth seed begins another repetition.
    raw = [{image.numpy().tobytes() for image in data.splits().test[0]} for data in folds]
    assert all(not raw[i] & raw[j] for i in range(5) for j in range(i))
    assert raw[5] != raw[0]
    share = [y.float().mean().item() for _, y in tests]
    assert all(abs(s - sum(share) / 6) < 0.06 for s in share)
    assert 0.2 < share[0] < 0.4
    train, val, test = (data_part for data_part in vars(folds[0].splits()).values() if isinstance(data_part, tuple))
    assert len(train[0]) + len(val[0]) + len(test[0]) == 500
    assert [p.name for p in tmp_path.iterdir()] == ["solar-16.npz"]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three families of those that matplotlib ships, one without letters, and a damaged file."""
    folder = tmp_path_factory.mktemp("fonts")
    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    families = {
        "sans": ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf"],
        "mono": ["DejaVuSansMono.ttf"],
        "serif": ["DejaVuSerif.ttf"],
        "symbols": ["STIXSizOneSymReg.ttf"],
    }
    for family, names in families.items():
        (folder / family).mkdir()
        for name in names:
            shutil.copy(shipped / name, folder / family)
    (folder / "mono" / "damaged.otf").write_bytes(b"OTTO and nothing more")
    return folder


def test_glyphs_of_a_folder(fonts: Path) -> None:
    found = render_folder(fonts, 32)
    assert found["images"].shape == (4 * 62, 32, 32)
    assert found["images"].dtype == np.uint8
    assert found["target"].tolist() == list(range(62)) * 4
    assert np.bincount(found["family"]).tolist() == [62, 124, 62]
    bold, plain = (found["images"][found["family"] == 1].reshape(2, 62, 32, 32) / 255).mean((1, 2, 3))
    assert bold > plain > 0.05
    o, capital = (found["images"][CHARACTERS.index(c)] for c in "oO")
    assert (o > 128).any(1).sum() < (capital > 128).any(1).sum()  # a common scale: case shows
    edge = np.concatenate([found["images"][:, 0], found["images"][:, -1]])
    assert edge.max() < 128


def test_families_of_the_test_are_unseen(fonts: Path, tmp_path: Path) -> None:
    arguments = {"kind": "glyphs", "fonts": str(fonts), "train": 62, "val": 30, "test": 62, "batch_size": 31}
    arguments |= {"val_fraction": 0.2, "test_fraction": 0.3}
    for seed in range(3):
        data = make_data(arguments, seed, tmp_path)
        assert data.num_classes == 62
        parts = data._families(np.load(tmp_path / "glyphs-32.npz")["family"])
        assert sorted(i for part in parts.values() for i in part) == [0, 1, 2]
        assert all(parts.values())
        assert data.size("test") == 62
    with pytest.raises(ValueError, match=r"train is 500, but its \d families have \d+ images"):
        make_data({**arguments, "train": 500}, 0, tmp_path)


def test_too_few_fonts(fonts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 2 fonts, with 1 families of usable ones"):
        render_folder(fonts / "mono", 32)


@pytest.mark.parametrize(("classes", "train"), [(10, 200), (100, 400)])
def test_cifar(classes: int, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # not the true set's digests
    write_cifar(tmp_path, classes)
    arguments = {"kind": f"cifar{classes}", "root": str(tmp_path), "val": classes * (5 if classes == 10 else 1)}
    data = make_data({**arguments, "batch_size": 20, "shift": 4, "hflip": True}, 1)
    assert [data.size(split) for split in ("train", "val", "test")] == [train, arguments["val"], classes * 5]
    assert data.class_names[:2] == ["class 0", "class 1"]
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (20, 3, 32, 32)
    assert y.shape == (20,)
    red = [data.splits().train[0][data.splits().train[1] == c][:, 0].float().mean().item() for c in (0, classes - 1)]
    assert red[1] > red[0] + 90
    x, _ = next(iter(make_data({**arguments, "batch_size": 20, "randaugment": 9, "mixup": 0.4}, 1).train_dataloader()))
    assert x.isfinite().all()
    assert make_data({**arguments, "train": classes * 2, "batch_size": 20}, 1).size("train") == classes * 2


def test_cifar_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"doesn't hold CIFAR10: .*data\.download"):
        make_data({"kind": "cifar10", "root": str(tmp_path)}, 0)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    """Imagenette's and ImageNet's layout: train/ and val/, each with a folder per class."""
    write_folder(tmp_path, splits=("train", "val"))
    data = make_data({"root": str(tmp_path), "image_size": 32, "batch_size": 4, "auto_augment": "rand-m9"}, 0)
    assert data.class_names == ["n01440764", "n02102040"]
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_every_kind_can_be_imported() -> None:
    for kind in ["images", *KINDS]:
        with pytest.raises(ValueError, match="doesn't take these arguments"):
            make_data({"kind": kind, "no such argument": 1}, 0)


@pytest.mark.parametrize("path", ["studies.solar", "studies.nowhere:Data", "studies.solar:Nothing", ":Data"])
def test_import_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path}'? (can't be imported|names no code)"):
        imported(path)
