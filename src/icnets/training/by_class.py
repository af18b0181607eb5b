"""What a network answers to the images of each class: counts in validation and test, and the worst mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from icnets import __version__
from icnets.support.tables import Table, show
from icnets.training.callbacks import validates_within_fit

SCHEMA = 1  # of test.json
_CLASSES_SHOWN, _MISTAKES = 20, 24


class _Counts:
    """Images by class and answer, (classes, classes), over batches and processes."""

    def __init__(self, classes: int) -> None:
        self.classes, self._pairs = classes, [torch.empty(0, dtype=torch.int64)]

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Of a step's ``preds`` and ``target``, both (N,); images without a class don't count."""
        preds, target = outputs["preds"], outputs["target"]
        self._pairs.append(target * self.classes + preds)  # negative where there is no class; waits for no GPU

    def total(self, trainer: Any) -> Tensor:
        """int32 on the CPU, of all processes, which must all call this."""
        pairs = torch.cat([part.cpu() for part in self._pairs])
        counts = torch.bincount(pairs[pairs >= 0], minlength=self.classes**2).view(self.classes, -1)
        return trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum").cpu().int()


class ValidationCounts(Callback):
    """Keeps in ``counts`` the images by class and answer of the epoch with the best val/top1; checkpoints have them.

    ``validation_step`` must return ``preds`` and ``target``, ``(N,)``.
    """

    def __init__(self) -> None:
        self.best = -1.0
        self.counts: Tensor | None = None
        self._current: _Counts | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._current = _Counts(vars(trainer)["datamodule"].num_classes) if validates_within_fit(trainer) else None

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._current is not None:
            self._current.add(outputs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = float(trainer.callback_metrics.get("val/top1", self.best))
        if value > self.best and self._current is not None:
            self.best, self.counts = value, self._current.total(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.counts = state_dict["best"], state_dict["counts"]


class Mistake(NamedTuple):
    """A wrong answer: its probability, the image's number and pixels (C, H, W), and the class."""

    probability: float
    answer: int
    target: int
    number: int
    image: Tensor


class ByClass(Callback):
    """Counts a test's images by class and answer, keeps the most confident mistakes, and prints a table by class.

    ``test_step`` must return ``preds``, ``target`` and ``confidence``, ``(N,)``; the data module is an ``EpochData``.
    """

    counts: Tensor
    mistakes: list[Mistake]

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._names: Sequence[str] = vars(trainer)["datamodule"].class_names
        self._current, self.mistakes = _Counts(len(self._names)), []
        self._batches: Any = list(vars(trainer)["datamodule"].test_dataloader().batch_sampler)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._current.add(outputs)
        rows = zip(*(outputs[name].tolist() for name in ("confidence", "preds", "target")), strict=True)
        for i, (sure, answer, target) in enumerate(rows):
            least = self.mistakes[-1].probability if len(self.mistakes) == _MISTAKES else 0.0
            if target >= 0 and answer != target and sure > least:
                mistake = Mistake(sure, answer, target, self._batches[batch_idx][i], batch[0][i].float().cpu())
                self._keep([*self.mistakes, mistake])

    def _keep(self, found: list[Mistake]) -> None:
        self.mistakes = sorted(found, key=lambda m: (-m.probability, m.number))[:_MISTAKES]

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.counts = self._current.total(trainer)
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, self.mistakes)
            self._keep([mistake for part in parts for mistake in part])
        if trainer.is_global_zero:
            show(table_by_class(self.counts, self._names))


def record_of_test(tested: ByClass, data: Any, metrics: Mapping[str, float], **head: str | None) -> dict[str, Any]:
    """What ``test.json`` holds, in JSON's types; docs/train.md has its schema.

    Args:
        tested: after the test.
        data: the data module that was tested on.
        metrics: as logged: test/top1, test/loss, ...
        **head: the checkpoint, and the protocol in words.
    """
    counts, names = tested.counts.long(), list(data.class_names)
    right, images, answers = (part.tolist() for part in (counts.diag(), counts.sum(1), counts.sum(0)))
    classes = [
        {"name": name, "images": n, "recall": r / n if n else None, "precision": r / a if a else None}
        for name, r, n, a in zip(names, right, images, answers, strict=True)
    ]
    files = data.names("test")
    mistakes = [
        {"image": files[m.number], "class": names[m.target], "answer": names[m.answer], "probability": m.probability}
        for m in tested.mistakes
    ]
    scores = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    start = {"schema": SCHEMA, "icnets": __version__, **head, "images": sum(images), **scores}
    return {**start, "classes": classes, "confusion": counts.tolist(), "mistakes": mistakes}


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
    if len(known) > _CLASSES_SHOWN:
        known.sort(key=lambda i: float(right[i] / images[i]))
        title = f"the {_CLASSES_SHOWN} worst of {len(known)} classes"
    rows = []
    for i in known[:_CLASSES_SHOWN]:
        most = int(wrong[i].argmax())
        taken = f"{names[most]} ({int(wrong[i, most])})" if wrong[i, most] else ""
        of_answers = f"{right[i] / answers[i]:.2%}" if answers[i] else ""
        rows.append([names[i], f"{int(images[i]):,}", f"{right[i] / images[i]:.2%}", of_answers, taken])
    return Table(title, ["class", "images", "of these right", "of its answers right", "most often taken for"], rows)
