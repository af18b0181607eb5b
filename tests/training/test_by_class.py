"""The table by class that ends a test."""

from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image

from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.training.by_class import ByClass, table_by_class
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
    trainer = L.Trainer(accelerator="cpu", callbacks=[ByClass()], **options)
    data = ImageData(root=tmp_path, image_size=16, eval_batch_size=2)
    for _ in range(2):  # counts begin anew
        trainer.test(ClassificationTask(Red(), num_classes=2), data, verbose=False)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["ant", "4", "75.00%", "50.00%", "bee", "(1)"] in lines
        assert ["bee", "5", "40.00%", "66.67%", "ant", "(3)"] in lines


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
