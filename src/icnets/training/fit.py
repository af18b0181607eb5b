"""One of many trainings: it keeps no files, prints nothing, and gives its metrics by epoch."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, LambdaCallback

from icnets.training.callbacks import History


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
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options: dict[str, Any] = {"devices": 1, "num_sanity_val_steps": 0, **silent, **limits}
    trainer = L.Trainer(accelerator=accelerator, callbacks=[history, *callbacks, every_epoch], **options)
    trainer.fit(task, datamodule=data)
    return history.rows
