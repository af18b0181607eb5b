"""One of many trainings: it keeps no files, prints nothing, and gives its metrics by epoch."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, LambdaCallback

from icnets.training.callbacks import History

__all__ = ["fit"]


def fit(
    task: L.LightningModule,
    data: L.LightningDataModule,
    *callbacks: Callback,
    accelerator: str = "cpu",
    tick: Callable[[], None] = lambda: None,
    **limits: Any,
) -> list[dict[str, float]]:
    """Trains and validates on one device.

    Args:
        task: what to train, in place.
        data: what to train it on.
        callbacks: of Lightning.
        accelerator: cpu, gpu or auto.
        tick: called after every epoch.
        limits: of Lightning's trainer: max_epochs, limit_train_batches, ...

    Returns:
        A row per epoch; see :class:`icnets.training.callbacks.History`.
    """
    history, every_epoch = History(), LambdaCallback(on_train_epoch_end=lambda *_: tick())
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    limits |= {
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [history, *callbacks, every_epoch],
    }
    trainer = L.Trainer(accelerator=accelerator, devices=1, **silent, **limits)
    trainer.fit(task, datamodule=data)
    return history.rows
