import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from icnets.data.data_module import ImageData
from icnets.data.folders import folder_splits, take
from icnets.data.images import ImageFiles, TensorImages, seed_all
from icnets.data.protocol import EvaluationTransform
from training.folders import write_classes


def batches(data: ImageData, epochs: int = 1) -> list[Tensor]:
    return [t for _ in range(epochs) for batch in data.train_dataloader() for t in batch]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def pictures(data: ImageData, split: str) -> set[bytes]:
    data.setup()
    images = data._splits[split]
    assert isinstance(images, TensorImages)
    return {image.numpy().tobytes() for image in images.images}


def paths(data: ImageData, split: str) -> list[Path]:
    data.setup()
    images = data._splits[split]
    assert isinstance(images, ImageFiles)
    return list(images.paths)


# Splits.


@given(
    sizes=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
    leave=st.integers(0, 1),
)
def test_take_partitions_and_keeps_proportions(sizes: list[int], fraction: float, seed: int, leave: int) -> None:
    targets = [c for c, size in enumerate(sizes) for _ in range(size)]
    count = round(fraction * (len(targets) - leave * len(sizes)))
    drawn, rest = take(targets, count, seed, leave=leave)
    assert len(drawn) == count
    assert sorted(drawn + rest) == list(range(len(targets)))
    per_class = Counter(targets[i] for i in drawn)
    for c, size in enumerate(sizes):
        assert size - per_class[c] >= leave
        if count >= len(sizes):
            assert per_class[c] >= 1
    # Where no class is at its smallest or largest number, each has its share to within one image.
    if all(1 < per_class[c] < size - leave for c, size in enumerate(sizes)):
        assert all(abs(per_class[c] - size * count / len(targets)) <= 1 for c, size in enumerate(sizes))


def test_take_depends_on_the_seed_only() -> None:
    targets = [0, 1] * 50
    assert take(targets, 20, 1) == take(targets, 20, 1)
    assert take(targets, 20, 1) != take(targets, 20, 2)


def test_take_refuses_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="cannot draw 4 images from 5 in 2 classes, leaving 1 of each"):
        take([0, 0, 0, 1, 1], 4, 0, leave=1)


def test_digits_sizes_and_facts() -> None:
    data = ImageData(train_size=300)
    assert data.num_classes == 10
    assert data.class_names == [str(i) for i in range(10)]
    assert (data.in_chans, data.image_size) == (1, 8)
    assert [data.size(split) for split in ("train", "val", "test")] == [300, 150, 797]
    assert ImageData().size("train") == 850


def test_digits_splits_are_disjoint_and_the_test_set_never_changes() -> None:
    first, second = ImageData(train_size=300, seed=0), ImageData(train_size=200, val_fraction=0.3, seed=1)
    assert pictures(first, "test") == pictures(second, "test")
    assert pictures(first, "train") != pictures(second, "train")
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        # Two of the 1,797 scans could be equal to the pixel; none are.
        assert not pictures(first, a) & pictures(first, b)


def test_digits_are_stratified() -> None:
    data = ImageData(train_size=300)
    for split in ("train", "val", "test"):
        data.setup()
        shares = torch.bincount(data._splits[split].targets) / data.size(split)
        assert (shares - 0.1).abs().max() < 0.02


def test_digits_are_normalised_by_their_own_mean_and_std() -> None:
    data = ImageData()
    data.setup()
    every = torch.cat([s.images for s in data._splits.values() if isinstance(s, TensorImages)])
    assert every.mean().abs() < 1e-3
    assert (every.std() - 1).abs() < 1e-3


def test_digits_in_colour_and_larger() -> None:
    data = ImageData(in_chans=3, image_size=16)
    x, _ = next(iter(data.test_dataloader()))
    assert x.shape == (64, 3, 16, 16)
    assert torch.equal(x[:, 0], x[:, 2])


def test_digits_are_shifted_and_nothing_else() -> None:
    data = ImageData(train_size=50, shift=1)
    data.setup()
    images = data._splits["train"]
    assert isinstance(images, TensorImages)
    background = -data.mean[0] / data.std[0]
    padded = torch.nn.functional.pad(images.images - background, (1, 1, 1, 1)) + background
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1).reshape(50, 9, 8, 8)
    offsets = set()
    for epoch in range(3):
        x, _ = images.__getitems__([(epoch, i, 0) for i in range(50)])
        hits = (windows == x).flatten(2).all(2)
        assert hits.any(1).all()
        offsets |= set(hits.int().argmax(1).tolist())
    assert len(offsets) == 9


# Determinism.


@pytest.mark.parametrize("options", [{}, {"mixup": 0.4, "mix_smoothing": 0.1}])
def test_digits_depend_on_the_seed_and_not_on_workers(options: dict[str, float]) -> None:
    def read(seed: int, workers: int) -> list[Tensor]:
        return batches(ImageData(train_size=100, batch_size=20, seed=seed, workers=workers, **options), epochs=2)

    reference = read(0, 0)
    assert same(reference, read(0, 2))
    assert not same(reference, read(1, 0))


def test_folder_depends_on_the_seed_and_not_on_workers(tmp_path: Path) -> None:
    root = write_classes(tmp_path, cat=8, dog=8)

    def read(seed: int, workers: int) -> list[Tensor]:
        data = ImageData(
            root, image_size=16, batch_size=4, seed=seed, workers=workers, auto_augment="rand-m9-mstd0.5", cutmix=1.0
        )
        return batches(data, epochs=2)

    reference = read(0, 0)
    torch.rand(3), random.random()
    assert same(reference, read(0, 2))
    assert not same(reference, read(1, 0))


def test_reading_leaves_the_random_numbers_of_others_alone(tmp_path: Path) -> None:
    data = ImageData(write_classes(tmp_path, cat=8, dog=8), image_size=16, batch_size=4, mixup=0.2)
    random.seed(5), torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    expected = (random.random(), torch.rand(1).item(), np.random.rand())  # noqa: NPY002
    random.seed(5), torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    images = data.train_dataloader().dataset
    images.__getitems__([(0, 0, 0), (0, 1, 0)])
    assert expected == (random.random(), torch.rand(1).item(), np.random.rand())  # noqa: NPY002


def test_epochs_differ_in_order_and_augmentation() -> None:
    data = ImageData(train_size=100, batch_size=100)
    (x, y), (x2, y2) = (next(iter(data.train_dataloader())) for _ in range(2))
    assert not torch.equal(y, y2)
    assert {i.numpy().tobytes() for i in x} != {i.numpy().tobytes() for i in x2}


def test_no_batch_of_a_single_image_and_none_too_small() -> None:
    assert [len(y) for _, y in ImageData(train_size=41, batch_size=20).train_dataloader()] == [20, 20]
    assert [len(y) for _, y in ImageData(train_size=15, batch_size=64).train_dataloader()] == [15]
    assert [len(y) for _, y in ImageData(train_size=15, batch_size=64, mixup=0.1).train_dataloader()] == [14]


def test_mixed_targets_are_soft() -> None:
    x, y = next(iter(ImageData(train_size=100, batch_size=64, mixup=1.0, mix_smoothing=0.1).train_dataloader()))
    assert y.shape == (64, 10)
    assert y.dtype == x.dtype == torch.float32
    assert torch.allclose(y.sum(1), torch.ones(64))
    assert (y.max(1).values < 0.95).all()
    assert next(iter(ImageData(mixup=1.0).val_dataloader()))[1].dtype == torch.int64


# Folders.


def test_flat_folder_is_split_class_by_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path, ant=20, bee=40)
    data = ImageData(root, val_fraction=0.25, test_fraction=0.2)
    assert data.class_names == ["ant", "bee"]
    found = {split: paths(data, split) for split in ("train", "val", "test")}
    assert {split: len(p) for split, p in found.items()} == {"train": 36, "val": 12, "test": 12}
    assert len({p for ps in found.values() for p in ps}) == 60
    for ps in found.values():
        ants = sum(p.parent.name == "ant" for p in ps)
        assert abs(ants - len(ps) / 3) <= 1


def test_every_split_has_every_class(tmp_path: Path) -> None:
    data = ImageData(write_classes(tmp_path, ant=3, bee=50), test_fraction=0.4, val_fraction=0.4)
    for split in ("train", "val", "test"):
        assert {p.parent.name for p in paths(data, split)} == {"ant", "bee"}


def test_given_splits_are_used(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        write_classes(tmp_path / split, ant=count, bee=count)
    data = ImageData(tmp_path, train_size=6)
    assert {split: len(paths(data, split)) for split in ("train", "val", "test")} == {"train": 6, "val": 4, "test": 6}
    assert all(p.parent.parent.name == "test" for p in paths(data, "test"))


def test_training_folder_alone(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ant=10, bee=10)
    data = ImageData(tmp_path)
    assert not set(paths(data, "train")) & set(paths(data, "val"))
    assert paths(data, "val") == paths(data, "test")


@pytest.mark.parametrize("in_chans", [1, 3])
def test_folder_images_are_normalised(tmp_path: Path, in_chans: int) -> None:
    colour = (200, 100, 50)
    for name in ("ant", "bee"):
        for i in range(4):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), colour).save(path)
    mean, std = (0.4, 0.3, 0.2)[:in_chans], (0.5, 0.25, 0.2)[:in_chans]
    data = ImageData(tmp_path, image_size=16, in_chans=in_chans, mean=mean, std=std)
    x, _ = next(iter(data.val_dataloader()))
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    values = colour if in_chans == 3 else (grey,)
    expected = torch.tensor([(v / 255 - m) / s for v, m, s in zip(values, mean, std, strict=True)])
    assert x.shape[1:] == (in_chans, 16, 16)
    assert torch.allclose(x, expected.view(1, -1, 1, 1).expand_as(x), atol=1e-5)


@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_an_image_is_what_timms_transform_makes_of_it(tmp_path: Path, erase: float) -> None:
    data = ImageData(write_classes(tmp_path, cat=8, dog=8), image_size=16, erase=erase, seed=3)
    data.setup()
    images = data._splits["train"]
    (x,), _ = images.__getitems__([(5, 2, 0)])
    options = {"scale": (0.35, 1.0), "color_jitter": 0.0, "re_prob": erase, "interpolation": "bilinear"}
    transform = create_transform(16, is_training=True, **options)
    seed_all(3, 5, 2)
    with Image.open(paths(data, "train")[2]) as image:
        assert torch.equal(x, transform(image.convert("RGB")))


def test_evaluation_sees_other_files_as_validation_sees_its_own(tmp_path: Path) -> None:
    data = ImageData(write_classes(tmp_path, ant=4, bee=4), image_size=16, in_chans=1, crop_pct=0.7)
    view = EvaluationTransform(16, in_chans=1, crop_pct=0.7)
    x, _ = next(iter(data.val_dataloader()))
    assert data.names("val") == [str(path) for path in paths(data, "val")]
    assert torch.equal(x, torch.stack([view.read(path) for path in paths(data, "val")]))


def test_a_truncated_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = write_classes(tmp_path, ant=4, bee=4)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    data = ImageData(root, image_size=16)
    with pytest.raises(ValueError, match=r"can't read the image .*\.png"):
        next(iter(data.train_dataloader()))


def make_broken(folder: Path) -> None:
    write_classes(folder / "empty", ant=3, bee=0, cow=0)
    write_classes(folder / "few", ant=2, bee=5)
    write_classes(folder / "one", ant=3)
    write_classes(folder / "differ" / "train", ant=3, bee=3, cow=3)
    write_classes(folder / "differ" / "val", ant=3, bee=3, elk=3)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["Train", "Val"], "Train/, Val/"),
        (["training", "validation", "annotations"], "training/, validation/"),
        (["val", "test"], "test/, val/"),
        (["val"], "val/"),
        (["train", "Val"], "Val/"),
        (["train", "val", "testing"], "testing/"),
    ],
)
def test_folders_named_like_splits_are_no_classes(tmp_path: Path, names: list[str], named: str) -> None:
    for name in names:
        write_classes(tmp_path / name, ant=3, bee=3)
    with pytest.raises(ValueError, match=f"has {named}, named like splits, not like classes; splits are called train/"):
        folder_splits(tmp_path, train_size=None, val_fraction=0.2, test_fraction=0, seed=0)


@pytest.mark.parametrize("names", [["Car", "Train", "Plane"], ["train", "valid"], ["train", "val", "notes"]])
def test_other_folders_are_left_as_they_are(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_classes(tmp_path / name, ant=3, bee=3)
    splits = folder_splits(tmp_path, train_size=None, val_fraction=0.2, test_fraction=0, seed=0)
    assert splits["train"].class_names == (sorted(names) if "train" not in names else ["ant", "bee"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"missing is not a folder: data\.root must hold train/ and val/, or one folder per class"),
        ("empty", r"no images \(\.jpg, \.png, \.webp, \.\.\.\) in class folders 'bee', 'cow' of .*empty"),
        ("few", r"class 'ant' of .*few has 2 images: each split needs one, 3 in all"),
        ("one", r"one has 1 class folder: classification needs 2 or more"),
        ("differ", r"val has other classes than .*train: it lacks 'cow' and adds 'elk'"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, name: str, message: str) -> None:
    make_broken(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        ImageData(tmp_path / name).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"train_size": 0}, "train_size is 0; it must be at least 1"),
        ({"val_fraction": 0.0}, "validation needs images"),
        ({"val_fraction": 0.6, "test_fraction": 0.6}, "their sum must be less than 1"),
        ({"in_chans": 2}, "in_chans is 2; images are read with 1"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for 1 channels"),
        ({"std": (0.0,)}, r"std is \(0.0,\); it must be positive"),
        ({"mixup": 0.2, "batch_size": 7}, "batch_size is 7; mixup and cutmix pair images"),
        ({"hflip": 2.0}, "hflip is 2.0; it must lie between 0 and 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"mean": (math.nan,)}, r"mean is \(nan,\); its values must be numbers"),
        ({"std": (math.inf,)}, r"std is \(inf,\); its values must be numbers"),
        ({"interpolation": "fine"}, "interpolation is 'fine'; it must be one of bilinear, bicubic, nearest"),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [5, 900])
def test_a_training_set_that_the_digits_cannot_give(size: int) -> None:
    with pytest.raises(ValueError, match=f"train_size is {size}, but 850 images are left beside 150"):
        ImageData(train_size=size).setup()


def test_unknown_augmentation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="auto_augment is 'nonsense'; timm understands"):
        ImageData(write_classes(tmp_path, ant=4, bee=4), auto_augment="nonsense").setup()
