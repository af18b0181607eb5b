import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data.real_labels import RealLabelsImagenet
from timm.data.transforms_factory import create_transform
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import functional as TF

from icnets.data.data_module import ImageData
from icnets.data.protocol import (
    average_crops,
    best_label,
    evaluation_transform,
    find_test_images,
    read_real_labels,
    ten_crops,
)
from icnets.support.quiet import quiet
from icnets.training.task import ClassificationTask
from training.folders import write_classes, write_image
from training.red import Red

NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def test_the_fifth_of_ten_crops_is_the_one_of_a_single_crop(tmp_path: Path) -> None:
    image = Image.open(write_image(tmp_path / "a.png", size=(60, 81))).convert("RGB")
    crops = ten_crops(evaluation_transform(32, crop_pct=0.8, interpolation="bicubic", **NORMAL))(image)
    assert crops.shape == (3, 10, 32, 32)
    single = create_transform(32, crop_pct=0.8, interpolation="bicubic", **NORMAL)(image)
    torch.testing.assert_close(crops[:, 4], single)
    torch.testing.assert_close(crops[:, 9], single.flip(-1))
    whole = TF.normalize(TF.to_tensor(TF.resize(image, 40, TF.InterpolationMode.BICUBIC)), *NORMAL.values())
    torch.testing.assert_close(crops[:, 0], whole[:, :32, :32])
    torch.testing.assert_close(crops[:, 3], whole[:, -32:, -32:])


def test_probabilities_are_averaged_not_logits() -> None:
    logits = torch.randn(3 * 10, 7)
    found = average_crops(logits, 3)
    for i in range(3):
        expected = sum(logits[10 * i + j].softmax(0) for j in range(10)) / 10
        torch.testing.assert_close(found[i].exp(), expected)


def test_numbered_folders_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [f"n{i:08d}" for i in range(12)]
    write_classes(tmp_path, **{str(i): 1 for i in range(12)})
    found = find_test_images(tmp_path, names)
    for path, target in zip(found.paths, found.targets, strict=True):
        assert target == int(path.parent.name)  # as text, 10 and 11 come before 2
    assert found.class_names == names
    with pytest.raises(ValueError, match=r"numbers up to 11, but the training has 5 classes: they must be 0 to 4"):
        find_test_images(tmp_path, names[:5])


def test_named_folders_keep_their_names(tmp_path: Path) -> None:
    write_classes(tmp_path, bee=2, cow=1)
    found = find_test_images(tmp_path, ["ant", "bee", "cow"])
    assert found.targets == [1, 1, 2]
    with pytest.raises(ValueError, match=r"has classes that the training has not: 'cow'"):
        find_test_images(tmp_path, ["ant", "bee"])
    write_classes(tmp_path / "numbers", **{"10": 1, "2": 1})  # numbers that are the training's own names
    assert find_test_images(tmp_path / "numbers", ["10", "2"]).targets == [0, 1]


def test_real_labels_are_counted_as_timm_counts_them(tmp_path: Path) -> None:
    labels = [[3], [1, 4], [], [0], [2, 3], []]
    file = tmp_path / "real.json"
    file.write_text(json.dumps(labels))
    paths = [tmp_path / f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(6)]
    logits = torch.randn(6, 8)
    right = read_real_labels(file, paths, 8)
    assert right.sum(1).tolist() == [1, 2, 0, 1, 2, 0]
    reference = RealLabelsImagenet([str(path) for path in paths], real_json=str(file), topk=(1, 3))
    reference.add_result(logits)
    kept, target = best_label(logits, right)
    assert len(kept) == 4
    for k in (1, 3):
        metric = MulticlassAccuracy(num_classes=8, top_k=k, average="micro")
        assert 100 * metric(kept, target) == pytest.approx(reference.get_accuracy(k))


def test_real_labels_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    with pytest.raises(ValueError, match=r"can't read real_labels .*; it is real\.json of reassessed-imagenet"):
        read_real_labels(file, [], 8)
    file.write_text(json.dumps([[9]]))
    named = Path("ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match=r"has class 9 for .*, but the network has 8 classes"):
        read_real_labels(file, [named], 8)
    with pytest.raises(ValueError, match=r"knows no image a\.png: test images need their names"):
        read_real_labels(file, [Path("a.png")], 20)
    file.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="must hold a list of class indices"):
        read_real_labels(file, [named], 20)


def test_a_test_with_ten_crops_and_real_labels(tmp_path: Path) -> None:
    quiet()
    write_classes(tmp_path / "photos", ant=8, bee=8)
    for i, colour in enumerate([(255, 0, 0), (0, 0, 0), (255, 0, 0), (0, 0, 0)], start=1):
        path = tmp_path / "val" / ("bee" if i > 2 else "ant") / f"ILSVRC2012_val_{i:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(path)
    (tmp_path / "real.json").write_text(json.dumps([[0, 1], [0], [], [1]]))
    import lightning as L

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    task = ClassificationTask(Red(), num_classes=2)
    options = {"root": tmp_path / "photos", "test_root": tmp_path / "val", "image_size": 16, "eval_batch_size": 3}
    plain = ImageData(**options)
    (found,) = trainer.test(task, plain, verbose=False)
    assert found["test/top1"] == 0.5  # ant: red, black; bee: red, black
    assert plain.protocol() == (
        f"protocol: shorter side bilinear to 16, the centre crop of 16 pixels; {tmp_path / 'val'}, "
        "4 images, one label an image"
    )
    real = ImageData(**options, test_crops=10, real_labels=tmp_path / "real.json", crop_pct=0.5)
    (found,) = trainer.test(task, real, verbose=False)
    assert found["test/top1"] == pytest.approx(2 / 3)  # 1 and 2 are right, 3 has no label, 4 is black
    assert "test/loss" not in found
    assert "shorter side bilinear to 32, 10 crops, their probabilities averaged, of 16 pixels" in real.protocol()
    assert "ImageNet-ReaL labels of" in real.protocol()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 0.0}, "crop_pct is 0.0; it must be greater than 0 and at most 1"),
        ({"test_crops": 10}, "test_crops is 10; it must be 1, or 10 for a folder of images"),
        ({"test_crops": 5}, "test_crops is 5"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**options)


def test_the_protocol_of_digits() -> None:
    assert ImageData().protocol() == "protocol: handwritten digits, whole, 8 pixels; 797 images, one label an image"
