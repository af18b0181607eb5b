"""A training that keeps no files and shows nothing: one of many, whose course is all that is wanted."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from icnets.training.callbacks import History

__all__ = ["fit"]


class _Ticks(Callback):
    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tick()


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
    history = History()
    trainer = L.Trainer(
        **limits,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[history, *callbacks, _Ticks(tick)],
    )
    trainer.fit(task, datamodule=data)
    return history.rows
