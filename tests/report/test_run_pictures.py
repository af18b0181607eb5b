"""The pictures in a run's folder: what they show, and that a training takes no notice of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from icnets.cli import main
from icnets.report.run_pictures import SampleBatch, never_fatal, save_confusion, save_curves, save_mistakes
from icnets.training.by_class import Mistake
from training.newest import weights_of

CONF = Path(__file__).parents[1] / "conf"
DATA = SimpleNamespace(mean=(0.0,), std=(1.0,), class_names=["ant", "bee", "cow"])


def colours(path: Path) -> int:
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 20) or [])


def test_curves_of_any_metrics_and_of_none(tmp_path: Path) -> None:
    rows = [{"epoch": i, "train/loss": 1 / i, "val/loss": 2 / i, "val/top1": 1 - 1 / i} for i in (1, 2, 3)]
    save_curves(rows, tmp_path / "all.png")
    save_curves([{"epoch": 1, "seconds": 1.0}], tmp_path / "none.png")
    assert colours(tmp_path / "all.png") > colours(tmp_path / "none.png")
    with Image.open(tmp_path / "all.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # legible on a dark page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.png", "none.png"]


@pytest.mark.parametrize("classes", [2, 40])
def test_confusions(tmp_path: Path, classes: int) -> None:
    counts = (3 * torch.eye(classes)).int()
    save_confusion(counts.tolist(), [f"$class_{i}" for i in range(classes)], tmp_path / "right.png")
    counts[0, 1] = 2
    save_confusion(counts.tolist(), [f"$class_{i}" for i in range(classes)], tmp_path / "wrong.png")
    assert colours(tmp_path / "wrong.png") > colours(tmp_path / "right.png")


def test_mistakes_and_their_absence(tmp_path: Path) -> None:
    sheet = tmp_path / "mistakes.png"
    save_mistakes([Mistake(0.9, 1, 0, 7, torch.full((1, 9, 9), 0.5))], DATA, sheet)
    with Image.open(sheet) as image:
        assert image.convert("RGB").getpixel((60, 60)) == (128, 128, 128)
    save_mistakes([], DATA, sheet)
    assert not sheet.exists()


def test_a_batch_is_drawn_once_and_nothing_random_with_it(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, fast_dev_run=False, datamodule=DATA)
    batch = torch.rand(40, 1, 9, 9), torch.tensor([[0.7, 0.3, 0.0]] * 40)
    state, drawing = torch.get_rng_state(), SampleBatch(tmp_path)
    for _ in range(2):
        drawing.on_train_batch_start(trainer, None, batch, 0)  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state)
        with Image.open(tmp_path / "batch.png") as image:
            assert image.width > image.height > 4 * 144  # four rows of eight
        batch = batch[0] * 0, batch[1]
    assert colours(tmp_path / "batch.png") > 100  # of the first


def test_what_cannot_be_drawn_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with never_fatal(tmp_path / "no" / "curves.png") as path:
        save_curves([], path)
    line = capsys.readouterr().err
    assert line.startswith(f"icnets: can't write {path}: ")
    assert line.count("\n") == 1


class _Nothing(Callback):
    counts = None

    def __init__(self, *args: object) -> None:
        pass


@pytest.mark.usefixtures("own_run")
def test_a_training_is_the_same_without_pictures_and_survives_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("no ink")

    fit = ["fit", "--config", str(CONF / "digits_basic.yaml"), "--trainer.max_epochs", "1", "--name"]
    assert main([*fit, "with"]) == 0
    assert {"batch.png", "curves.png", "confusion.png"} <= {path.name for path in Path("runs/with").iterdir()}
    with monkeypatch.context() as patch:
        for name in ("SampleBatch", "ValidationCounts"):
            patch.setattr(f"icnets.cli.fit.{name}", _Nothing)
        assert main([*fit, "without"]) == 0
    for name in ("save_sheet", "save_chart"):
        monkeypatch.setattr(f"icnets.report.run_pictures.{name}", broken)
    capsys.readouterr()
    assert main([*fit, "broken"]) == 0
    assert capsys.readouterr().err.count("no ink\n") == 3
    expected = weights_of(Path("runs/with/checkpoints"))
    for name in ("without", "broken"):
        found = weights_of(Path(f"runs/{name}/checkpoints"))
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        assert Path(f"runs/{name}/checkpoints/best.safetensors").is_file()
