import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from safetensors import safe_open
from torch import Tensor

from icnets import ICConfig, load
from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.training.callbacks import (
    BarBelowLines,
    History,
    Patience,
    ProgressLines,
    WeightAverage,
    WeightsExport,
    progress_bar,
)
from icnets.training.task import ClassificationTask

TINY: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}


class _StopAt(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise _Stopped


class _Stopped(Exception):
    pass


def fit(folder: Path, *callbacks: Callback, epochs: int = 3, resume: bool = False, seed: int = 0) -> ClassificationTask:
    quiet()
    torch.manual_seed(seed)
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="val/top1",
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, saver],
    )
    module = ClassificationTask("resnet10t", 10, 1, ic=ICConfig(), model_options=TINY, lr=0.05)
    data = ImageData(train_size=160, image_size=16, batch_size=40, mixup=0.3)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


def test_history(tmp_path: Path) -> None:
    history = History(tmp_path / "logs" / "history.csv")
    fit(tmp_path, history, epochs=4)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
    assert [row["step"] for row in history.rows] == [4, 8, 12, 16]
    assert {"train/loss", "val/loss", "val/top1", "val/top5"} <= history.rows[0].keys()
    seconds = [row["seconds"] for row in history.rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] < 60
    with open(tmp_path / "logs" / "history.csv", newline="") as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == history.rows


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_validation_and_checkpoints_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("icnets.training.callbacks.time.perf_counter", clock)
    history, module = History(), L.LightningModule()
    for epoch, accuracy in enumerate((0.1, 0.3, 0.6, 0.5, 0.7)):
        trainer: Any = SimpleNamespace(
            current_epoch=epoch,
            global_step=4 * epoch,
            callback_metrics={"val/top1": torch.tensor(accuracy, dtype=torch.float64)},
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
        )
        for event, seconds in (
            ("on_train_epoch_start", 10),
            ("on_validation_start", 100),
            ("on_validation_end", 1),
            ("on_train_epoch_end", 1000),
        ):
            getattr(history, event)(trainer, module)
            clock.now += seconds
    found = [(row["epoch"], row["seconds"], row["val/top1"]) for row in history.rows]
    assert found == [(1, 11, 0.1), (2, 22, 0.3), (3, 33, 0.6), (4, 44, 0.5), (5, 55, 0.7)]
    again = History()
    again.load_state_dict(history.state_dict())
    assert (again.rows, again.seconds) == (history.rows, 55)


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def callbacks(folder: str) -> tuple[History, WeightsExport]:
        return History(), WeightsExport(tmp_path / folder)

    whole = callbacks("whole")
    expected = fit(tmp_path / "whole", *whole, epochs=4)
    with pytest.raises(_Stopped):
        fit(tmp_path / "parts", *callbacks("parts"), _StopAt(2), epochs=4)
    parts = callbacks("parts")
    # Another seed: nothing of the rest may hang on the global state that the break has lost.
    found = fit(tmp_path / "parts", *parts, epochs=4, resume=True, seed=99)
    for (name, a), b in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    def without_time(history: History) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]

    assert without_time(parts[0]) == without_time(whole[0])
    assert parts[0].rows[3]["seconds"] > parts[0].rows[0]["seconds"]
    assert parts[1].best == whole[1].best
    names = ["best.ckpt", "best.safetensors", "last.ckpt"]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == names


def test_checkpoints_load_safely(tmp_path: Path) -> None:
    fit(tmp_path, History(), WeightsExport(tmp_path), epochs=1)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {key.partition("{")[0] for key in content["callbacks"]}
    assert names == {"History", "WeightsExport", "ModelCheckpoint"}


def test_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    history = History()
    fit(tmp_path, history, WeightsExport(tmp_path))
    best = max(history.rows, key=lambda row: row["val/top1"])
    with safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        notes = file.metadata()
    assert int(notes["epoch"]) == best["epoch"]
    assert notes["class_names"] == "0,1,2,3,4,5,6,7,8,9"
    assert (notes["crop_pct"], notes["interpolation"]) == ("1.0", "bilinear")  # digits are seen whole
    assert float(notes["val/top1"]) == pytest.approx(best["val/top1"], rel=1e-5)
    weights = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in load(tmp_path / "best.safetensors").state_dict().items():
        assert torch.equal(value, weights[f"network.{name}"]), name


def test_export_needs_a_mode() -> None:
    with pytest.raises(ValueError, match="mode is 'most'; it must be max or min"):
        WeightsExport("weights", mode="most")


def test_lines_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(progress_bar(), ProgressLines)  # pytest has no terminal
    fit(tmp_path, progress_bar(), epochs=2)
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert first.startswith("epoch 1/2  train/loss ")
    assert "val/top1" in first
    assert first.endswith(" s left")
    assert second.startswith("epoch 2/2")
    assert not second.endswith("left")


class _Steps(Callback):
    """The last layer's weight after every step, and what validation sees of it."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.trained.append(pl_module.network.fc.weight.detach().clone())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.append(pl_module.network.fc.weight.detach().clone())


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    seen = _Steps()
    task = fit(tmp_path, WeightAverage(0.8), seen, epochs=2)
    average = seen.trained[0]
    for step, weight in enumerate(seen.trained[1:], start=2):
        decay = min(0.8, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(task.network.fc.weight, average)
    torch.testing.assert_close(seen.validated[-1], average)
    assert not torch.allclose(average, seen.trained[-1])


def test_an_average_goes_on_where_it_was(tmp_path: Path) -> None:
    undisturbed = fit(tmp_path / "a", WeightAverage(0.8))
    with pytest.raises(_Stopped):
        fit(tmp_path / "b", WeightAverage(0.8), _StopAt(2))
    resumed = fit(tmp_path / "b", WeightAverage(0.8), resume=True)
    for a, b in zip(undisturbed.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_was_validated_is_what_the_files_hold(tmp_path: Path) -> None:
    seen = _Steps()
    fit(tmp_path, WeightAverage(0.8), WeightsExport(tmp_path), seen, epochs=2)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    validated = seen.validated[(content["epoch"] + 1) * len(seen.validated) // 2 - 1]
    assert torch.equal(content["state_dict"]["network.fc.weight"], validated)
    assert not torch.allclose(seen.validated[-1], seen.trained[-1])
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(load(tmp_path / "best.safetensors").fc.weight, best["network.fc.weight"])


def test_a_checkpoint_after_the_end_holds_the_average_too(tmp_path: Path) -> None:
    average = WeightAverage(0.8)
    task = fit(tmp_path, average, epochs=1)
    task.trainer.save_checkpoint(tmp_path / "end.ckpt")
    content = torch.load(tmp_path / "end.ckpt", weights_only=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for found, expected in (
        (content["state_dict"]["network.fc.weight"], task.network.fc.weight),
        (content["state_dict"]["network.fc.weight"], last["state_dict"]["network.fc.weight"]),
        (
            content["callbacks"]["WeightAverage"]["trained"]["fc.weight"],
            last["callbacks"]["WeightAverage"]["trained"]["fc.weight"],
        ),
    ):
        assert torch.equal(found, expected)


def test_an_average_needs_a_decay() -> None:
    with pytest.raises(ValueError, match="decay is 1"):
        WeightAverage(1.0)


class _Scripted(Callback):
    """Makes val/top1 what is given, epoch by epoch."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.metrics["val_top1"].compute = lambda: torch.tensor(self.values[trainer.current_epoch])


def test_patience_ends_training_and_resumes_exactly(tmp_path: Path) -> None:
    script = (0.1, 0.3, 0.2, 0.3, 0.9, 0.9)  # an equal one is no better
    whole = History()
    expected = fit(tmp_path / "whole", _Scripted(*script), whole, patience := Patience(2), epochs=6)
    assert [row["val/top1"] for row in whole.rows] == pytest.approx(script[:4])
    assert (len(whole.rows), patience.wait_count) == (4, 2)
    with pytest.raises(_Stopped):
        fit(tmp_path / "parts", _Scripted(*script), History(), Patience(2), _StopAt(3), epochs=6)
    found = fit(tmp_path / "parts", _Scripted(*script), parts := History(), Patience(2), epochs=6, resume=True)
    assert [row["epoch"] for row in parts.rows] == [1, 2, 3, 4]
    for (name, a), b in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    # After the last epoch nothing is left to do; with more patience there is.
    fit(tmp_path / "whole", _Scripted(*script), again := History(), Patience(2), epochs=6, resume=True)
    assert len(again.rows) == 4
    fit(tmp_path / "whole", _Scripted(*script), more := History(), Patience(3), epochs=6, resume=True)
    assert len(more.rows) == 6


def test_patience_needs_epochs_and_validation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience is 0; it must be at least 1 epoch, or left out"):
        Patience(0)
    trainer: Any = SimpleNamespace(limit_val_batches=0)
    with pytest.raises(ValueError, match="patience is 2, but nothing is validated; leave out --patience"):
        Patience(2).on_train_start(trainer, L.LightningModule())


def test_on_a_terminal_the_lines_are_above_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("icnets.training.callbacks.sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("rich._console", None)  # the one that is made here would go on with colours
    bar = progress_bar()
    assert isinstance(bar, BarBelowLines)
    fit(tmp_path, bar, epochs=2)
    assert bar._get_train_description(0).rstrip() == "Epoch 1/2"
    assert re.findall(r"(epoch ./2)  train/loss", capsys.readouterr().out) == ["epoch 1/2", "epoch 2/2"]
