"""Per-class accuracy and the most common confusions, printed after a test."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from icnets.data.images import IGNORED
from icnets.support.tables import Table, show

_SHOWN = 20


class ByClass(Callback):
    """Prints a table by class at the end of a test; ``test_step`` must return ``preds`` and ``target``, ``(N,)``."""

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._names: Sequence[str] = vars(trainer)["datamodule"].class_names
        self._counts = MulticlassConfusionMatrix(len(self._names), ignore_index=IGNORED).to(pl_module.device)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._counts.update(**outputs)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self._counts.compute().cpu()  # of all processes
        if trainer.is_global_zero:
            show(table_by_class(counts, self._names))


def table_by_class(counts: Tensor, names: Sequence[str]) -> Table:
    """A row for each class that has images, or for the worst of many.

    Args:
        counts: ``(classes, classes)``, images by class and answer.
        names: of the classes.

    Example:
        >>> table_by_class(Tensor([[3, 1], [0, 2]]).int(), ["cat", "dog"]).rows[0]
        ['cat', '4', '75.00%', '100.00%', 'dog (1)']
    """
    right, images, answers = counts.diag(), counts.sum(1), counts.sum(0)
    wrong = counts - right.diag()
    known = [i for i in range(len(names)) if images[i] > 0]
    title = "by class"
    if len(known) > _SHOWN:
        known.sort(key=lambda i: float(right[i] / images[i]))
        title = f"the {_SHOWN} worst of {len(known)} classes"
    rows = []
    for i in known[:_SHOWN]:
        most = int(wrong[i].argmax())
        taken = f"{names[most]} ({int(wrong[i, most])})" if wrong[i, most] else ""
        of_answers = f"{right[i] / answers[i]:.2%}" if answers[i] else ""
        rows.append([names[i], f"{int(images[i]):,}", f"{right[i] / images[i]:.2%}", of_answers, taken])
    return Table(title, ["class", "images", "of these right", "of its answers right", "most often taken for"], rows)
