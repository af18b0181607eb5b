"""What a test and the validations count by class, and the record of a test."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image

from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.training.by_class import ByClass, ValidationCounts, record_of_test, table_by_class
from icnets.training.task import ClassificationTask
from training.red import Red


def test_a_test_ends_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet()
    red, black = (255, 0, 0), (0, 0, 0)
    for name, colours in (("ant", [black] * 3 + [red]), ("bee", [red] * 2 + [black] * 3)):
        for i, colour in enumerate(colours):
            for split in ("train", "val"):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), colour).save(path)
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", callbacks=[tested := ByClass()], **options)
    data = ImageData(root=tmp_path, image_size=16, eval_batch_size=2)
    for _ in range(2):  # counts begin anew
        trainer.test(ClassificationTask(Red(), num_classes=2), data, verbose=False)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["ant", "4", "75.00%", "50.00%", "bee", "(1)"] in lines
        assert ["bee", "5", "40.00%", "66.67%", "ant", "(3)"] in lines
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    record = record_of_test(tested, data, metrics, checkpoint="a.ckpt", protocol="whole")
    assert json.loads(json.dumps(record)) == record
    assert (record["schema"], record["checkpoint"], record["images"]) == (1, "a.ckpt", 9)
    assert record["top1"] == pytest.approx(5 / 9)
    assert record["loss"] == metrics["test/loss"]
    assert record["confusion"] == [[3, 1], [3, 2]]
    assert record["classes"] == [
        {"name": "ant", "images": 4, "recall": 3 / 4, "precision": 3 / 6},
        {"name": "bee", "images": 5, "recall": 2 / 5, "precision": 2 / 3},
    ]
    files = {(m["image"].rpartition("val/")[2], m["class"], m["answer"]) for m in record["mistakes"]}
    assert files == {("ant/3.png", "ant", "bee"), *((f"bee/{i}.png", "bee", "ant") for i in (2, 3, 4))}
    probabilities = [m["probability"] for m in record["mistakes"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < probabilities[-1] <= probabilities[0] <= 1
    for mistake in tested.mistakes:  # the pixels are the image's
        assert (float(mistake.image[0].mean()) > 0) == (data.names("test")[mistake.number].endswith("ant/3.png"))


def test_counts_are_those_of_the_best_epoch() -> None:
    counting, strategy = ValidationCounts(), SimpleNamespace(root_device="cpu", reduce=lambda counts, reduce_op: counts)
    target = torch.tensor([0, 1, 1, -1])
    answers = ([0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 0])
    for preds, top1 in zip(answers, (1 / 3, 1.0, 2 / 3), strict=True):
        trainer: Any = SimpleNamespace(
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            datamodule=SimpleNamespace(num_classes=2),
            callback_metrics={"val/top1": torch.tensor(top1)},
            strategy=strategy,
        )
        counting.on_validation_epoch_start(trainer, None)  # type: ignore[arg-type]
        for part in (slice(0, 3), slice(3, 4)):
            counting.on_validation_batch_end(
                trainer, None, {"preds": torch.tensor(preds)[part], "target": target[part]}, None, 0
            )
        counting.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        resumed = ValidationCounts()
        resumed.load_state_dict(counting.state_dict())
        counting = resumed
    assert counting.counts is not None
    assert counting.counts.tolist() == [[1, 0], [0, 2]]


def test_of_many_classes_the_worst() -> None:
    counts = torch.diag(torch.arange(30))  # of class 0 there is no image
    counts[7, 9] = 7
    table = table_by_class(counts, [f"class {i}" for i in range(30)])
    assert table.title == "the 20 worst of 29 classes"
    assert len(table.rows) == 20
    assert table.rows[0] == ["class 7", "14", "50.00%", "100.00%", "class 9 (7)"]


def test_a_class_that_is_never_answered() -> None:
    rows = table_by_class(torch.tensor([[0, 2], [0, 3]]), ["a", "b"]).rows
    assert rows == [["a", "2", "0.00%", "", "b (2)"], ["b", "3", "100.00%", "60.00%", ""]]
