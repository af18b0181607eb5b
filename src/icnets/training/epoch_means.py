"""Means over the images of an epoch, with which a training that is resumed within the epoch goes on."""

from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics import MeanMetric

__all__ = ["EpochMeans"]


class EpochMeans(nn.ModuleDict):
    """Means that are logged as train/NAME; a submodule of the LightningModule that logs them, without a state dict.

    Args:
        names: of the values.
    """

    def __init__(self, *names: str) -> None:
        # Without its own search for NaN, which would wait for the device at every step.
        super().__init__({name: MeanMetric(nan_strategy="disable") for name in names})

    def log(self, module: L.LightningModule, name: str, value: Tensor | float, images: int, **options: Any) -> None:
        """Takes in a batch's value: a scalar, and the number of its images."""
        metric: Any = self[name]
        metric.update(value, weight=images)
        module.log(f"train/{name}", metric, on_step=False, on_epoch=True, **options)

    def sums(self, trainer: L.Trainer) -> dict[str, list[Tensor]]:
        """For a checkpoint: weighted sum and weight of each, over all processes; nothing where the epoch is over.

        Every process must call this.
        """
        progress: Any = trainer.fit_loop.epoch_progress.current
        if progress.processed > progress.completed:
            return {}
        found = {}
        for name, metric in self.items():
            with metric.sync_context():  # type: ignore[operator]
                found[name] = [metric.mean_value.clone(), metric.weight.clone()]  # type: ignore[operator]
        return found

    def resume(self, sums: dict[str, list[Tensor]], rank: int) -> None:
        """Goes on from ``sums``, which the process of rank 0 takes over for all."""
        for name, (mean_value, weight) in sums.items() if rank == 0 else ():
            metric: Any = self[name]
            metric.mean_value.copy_(mean_value)
            metric.weight.copy_(weight)
