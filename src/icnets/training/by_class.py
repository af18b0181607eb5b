"""What a test says of each class: how many of its images are right, and what the others are taken for (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from icnets.data.images import IGNORED
from icnets.support.tables import Table, show

__all__ = ["ByClass", "table_by_class"]

_SHOWN = 20


class ByClass(Callback):
    """Prints a table by class at the end of a test; ``test_step`` must return ``preds`` and ``target``, ``(N,)``."""

    def __init__(self) -> None:
        self._counts: MulticlassConfusionMatrix | None = None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._counts is None:
            classes = len(self._names(trainer))
            self._counts = MulticlassConfusionMatrix(classes, ignore_index=IGNORED).to(pl_module.device)
        self._counts.update(**outputs)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._counts is None:
            return
        counts = self._counts.compute().cpu()  # of all processes
        self._counts = None
        if trainer.is_global_zero:
            show(table_by_class(counts, self._names(trainer)))

    @staticmethod
    def _names(trainer: L.Trainer) -> Sequence[str]:
        names: Sequence[str] = vars(trainer)["datamodule"].class_names
        return names


def table_by_class(counts: Tensor, names: Sequence[str]) -> Table:
    """A row for each class, or for the worst of many.

    Args:
        counts: ``(classes, classes)``, images by class and answer.
        names: of the classes.
    """
    right, images, answers = counts.diag(), counts.sum(1), counts.sum(0)
    wrong = counts - torch.diag(right)
    known = [i for i in range(len(names)) if images[i] > 0]
    if len(known) > _SHOWN:
        known.sort(key=lambda i: float(right[i] / images[i]))
    rows = []
    for i in known[:_SHOWN]:
        most = int(wrong[i].argmax())
        taken = f"{names[most]} ({int(wrong[i, most])})" if wrong[i, most] else ""
        of_answers = f"{right[i] / answers[i]:.2%}" if answers[i] else ""
        rows.append([names[i], f"{int(images[i]):,}", f"{right[i] / images[i]:.2%}", of_answers, taken])
    title = "by class" if len(known) <= _SHOWN else f"the {_SHOWN} worst of {len(known)} classes"
    columns = ["class", "images", "of these right", "of its answers right", "most often taken for"]
    return Table(title, columns, rows)
