"""Callbacks: a run's history, its best weights, their running average, early stopping and progress by epoch."""

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar, RichProgressBar
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from icnets import checkpoint
from icnets.checkpoint.image_notes import notes_of_data
from icnets.support.files import atomic_write


def validates_within_fit(trainer: L.Trainer) -> bool:
    """Whether a validation belongs to a training, and isn't its sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


class History(Callback):
    """One row per epoch in ``rows``: epoch (from 1), step, seconds of training so far, and every logged metric.

    The seconds leave out validation and what is saved at an epoch's end. Checkpoints keep the rows, so that a resumed
    run has those of its beginning and goes on counting; Lightning's CSVLogger does neither, and writes other columns.

    Args:
        path: a CSV file that holds the rows so far after each epoch; its folder is made if missing. None: no file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    on_validation_end = on_train_epoch_start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": self.seconds}
        self.rows.append({**row, **metrics})
        if self.path is not None and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(key for row in self.rows for key in row)))
                writer.writeheader()
                writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.rows = float(state_dict["seconds"]), [dict(row) for row in state_dict["rows"]]


class OfBestEpoch(Callback):
    """What is kept of the epoch with the best value of a logged metric, the first of equals; checkpoints know it."""

    monitor, mode = "val/top1", "max"
    best: float | None = None

    def improved(self, trainer: L.Trainer) -> bool:
        """Whether the epoch that ends is better than all before, which is noted."""
        value, before = float(trainer.callback_metrics.get(self.monitor, math.nan)), self.best
        better = before is None or (value > before if self.mode == "max" else value < before)
        if better and not math.isnan(value):
            self.best = value
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class WeightsExport(OfBestEpoch):
    """Writes the network to best.safetensors after each epoch that is better than all before.

    The weights are those that were validated: the average, where there is a :class:`WeightAverage`. The files are
    ``icnets.save``'s: ``icnets.load`` rebuilds the network from them, without Lightning.

    Args:
        folder: where to write; made if missing.
        monitor: the logged metric that says which epoch is the best; the first of equals.
        mode: whether larger ("max") or smaller ("min") is better.

    Raises:
        ValueError: an unknown mode.

    Example:
        >>> export = WeightsExport("weights", monitor="loss", mode="min")
        >>> trainer = L.Trainer(callbacks=[export], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(self, folder: str | Path, monitor: str = "val/top1", mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; it must be max or min")
        self.folder = Path(folder)
        self.monitor, self.mode = monitor, mode

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.improved(trainer) or not trainer.is_global_zero:
            return
        averages = [c for c in vars(trainer)["callbacks"] if isinstance(c, WeightAverage)]
        state = averages[0].weights(pl_module) if averages else None
        self.folder.mkdir(parents=True, exist_ok=True)
        notes = {"epoch": str(trainer.current_epoch + 1)}
        notes |= {name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items()}
        notes |= notes_of_data(getattr(trainer, "datamodule", None))
        checkpoint.save(_network(pl_module), self.folder / "best.safetensors", metadata=notes, state=state)


class WeightAverage(Callback):
    """A running average of weights and buffers (EMA), which is validated, and is the network when training ends.

    timm's ``ModelEmaV3``, whose decay rises from 0 with the steps, so that the start is forgotten. A checkpoint holds
    the average as the network, and what training goes on from in this callback's state. Lightning's
    EMAWeightAveraging has a constant decay and keeps its state under other names, so runs of before couldn't go on.

    Args:
        decay: of the average per step, in (0, 1).

    Raises:
        ValueError: the decay is not in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it must lie between 0 and 1, such as 0.999")
        self.decay = decay
        self._average: Any = None
        self._swapped = False  # whether the average is in the network, and what is trained in the average's place
        self._resumed: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._average = ModelEmaV3(_network(pl_module), decay=self.decay, use_warmup=True)
        self._swapped = False
        if self._resumed is not None:
            _network(pl_module).load_state_dict(self._resumed)
            self._resumed = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._average.update(_network(pl_module), step=trainer.global_step)

    @property
    def average(self) -> nn.Module:
        """The averaged network; while it is validated, what is trained instead."""
        return self._average.module

    def weights(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """The state dict of the average, wherever it is."""
        return (_network(pl_module) if self._swapped else self.average).state_dict()

    def _swap(self, pl_module: L.LightningModule) -> None:
        average = self.average.state_dict()
        for name, value in _network(pl_module).state_dict().items():
            kept = value.clone()
            value.copy_(average[name])
            average[name].copy_(kept)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validates_within_fit(trainer):
            self._swap(pl_module)

    on_validation_end = on_validation_start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average is not None:
            network = _network(pl_module)
            trained = (self.average if self._swapped else network).state_dict()
            checkpoint["callbacks"][self.state_key] = {"trained": trained}
            prefix = "" if network is pl_module else "network."
            checkpoint["state_dict"].update({prefix + name: v for name, v in self.weights(pl_module).items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict.get("trained")


def _network(module: L.LightningModule) -> Any:
    return getattr(module, "network", module)


class Patience(EarlyStopping):
    """Ends training after so many epochs without a better val/top1, also where it is resumed after the last of them.

    Args:
        epochs: how many; at least 1. What a checkpoint says of it doesn't count.

    Raises:
        ValueError: a number below 1; when training starts, a trainer that doesn't validate.

    Example:
        >>> trainer = L.Trainer(callbacks=[Patience(5)], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"patience is {epochs}; it must be at least 1 epoch, or left out")
        super().__init__("val/top1", mode="max", patience=epochs, check_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.limit_val_batches:
            raise ValueError(f"patience is {self.patience}, but nothing is validated; leave out --patience")
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class _EpochLines(ProgressBar):
    """Prints a line per epoch, with the time left; of several processes, the first one alone does."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started, self._first_epoch = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        done, total, metrics = trainer.current_epoch + 1, trainer.max_epochs or 0, trainer.callback_metrics
        elapsed = time.perf_counter() - self._started
        forms = {"train/loss": ".3f", "val/loss": ".3f", "val/top1": ".2%"}
        parts = [f"epoch {done}/{total}" if total > 0 else f"epoch {done}"]
        parts += [f"{name} {float(metrics[name]):{form}}" for name, form in forms.items() if name in metrics]
        left = f"  {elapsed / (done - self._first_epoch) * (total - done):.0f} s left" if done < total else ""
        if trainer.is_global_zero:
            print("  ".join(parts), f" {elapsed:.0f} s{left}", flush=True)


class ProgressLines(_EpochLines):
    """The lines alone: for logs and pipes, where a bar would only leave debris."""

    def disable(self) -> None:
        """Does nothing: the first process alone prints."""


class BarBelowLines(_EpochLines, RichProgressBar):
    """The lines above a bar, which counts epochs from 1 as they do."""

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs or 0
        name = f"Epoch {current_epoch + 1}" + (f"/{total}" if total > 0 else "")
        return name.ljust(len(self.validation_description))  # or the bar would jump between the two


def progress_bar() -> ProgressBar:
    """A line per epoch; on a terminal, above a bar with the time left."""
    return BarBelowLines(leave=False) if sys.stdout.isatty() else ProgressLines()
