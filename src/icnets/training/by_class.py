"""What a network answers to the images of each class: counts in validation and test, and the worst mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from icnets import __version__
from icnets.support.tables import Table
from icnets.training.callbacks import OfBestEpoch, validates_within_fit

SCHEMA = 1  # of test.json
_CLASSES_SHOWN, _MISTAKES = 20, 24


def _counts(trainer: Any, seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Images by class and answer, (classes, classes), int32 on the CPU: of all processes, which must all call this.

    ``seen``: classes and answers, (N,) each, of each batch; those without a class don't count. Nothing is counted
    before the end, which waits for no GPU; torchmetrics would compare each image with all pairs of classes there.
    """
    classes = trainer.datamodule.num_classes
    pairs = torch.cat([(target * classes + preds).cpu() for target, preds in seen])  # negative without a class
    counts = torch.bincount(pairs[pairs >= 0], minlength=classes**2).view(classes, -1)
    return trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum").cpu().int()


class ValidationCounts(OfBestEpoch):
    """Keeps in ``counts`` the images by class and answer of the epoch with the best val/top1; checkpoints have them.

    ``validation_step`` must return ``preds`` and ``target``, ``(N,)``.
    """

    counts: Tensor | None = None
    _seen: list[tuple[Tensor, Tensor]] | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = [] if validates_within_fit(trainer) else None

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        if self._seen is not None:
            self._seen.append((outputs["target"], outputs["preds"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._seen is not None and self.improved(trainer):
            self.counts = _counts(trainer, self._seen)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.counts = state_dict["counts"]


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

    def on_test_epoch_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self._seen, self.mistakes = list[tuple[Tensor, Tensor]](), []
        self._numbers: Any = list(trainer.datamodule.test_dataloader().batch_sampler)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seen.append((outputs["target"], outputs["preds"]))
        rows = zip(*(outputs[name].tolist() for name in ("confidence", "preds", "target")), strict=True)
        for i, (sure, answer, target) in enumerate(rows):
            least = self.mistakes[-1].probability if len(self.mistakes) == _MISTAKES else 0.0
            if target >= 0 and answer != target and sure > least:
                mistake = Mistake(sure, answer, target, self._numbers[batch_idx][i], batch[0][i].float().cpu())
                self._keep([*self.mistakes, mistake])

    def _keep(self, found: list[Mistake]) -> None:
        self.mistakes = sorted(found, key=lambda m: (-m.probability, m.number))[:_MISTAKES]

    def on_test_epoch_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        self.counts = _counts(trainer, self._seen)
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, self.mistakes)
            self._keep([mistake for part in parts for mistake in part])
        if trainer.is_global_zero:
            print(table_by_class(self.counts, trainer.datamodule.class_names).plain())


def record_of_test(tested: ByClass, data: Any, metrics: Mapping[str, float], **head: str | None) -> dict[str, Any]:
    """What ``test.json`` holds, in JSON's types; docs/train.md has its schema.

    Args:
        tested: after the test.
        data: the data module that was tested on.
        metrics: as logged: test/top1, test/loss, ...
        **head: the checkpoint, and the protocol in words.
    """
    names, files = list(data.class_names), data.names("test")
    mistakes = [
        {"image": files[m.number], "class": names[m.target], "answer": names[m.answer], "probability": m.probability}
        for m in tested.mistakes
    ]
    scores = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    start = {"schema": SCHEMA, "icnets": __version__, **head, "images": int(tested.counts.sum()), **scores}
    counts = {"classes": _by_class(tested.counts, names), "confusion": tested.counts.tolist()}
    return {**start, **counts, "mistakes": mistakes}


def _by_class(counts: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Images, recall and precision of each class; None where there are no images or no answers."""
    parts = (part.tolist() for part in (counts.diag(), counts.sum(1), counts.sum(0)))
    return [
        {"name": name, "images": n, "recall": r / n if n else None, "precision": r / a if a else None}
        for name, r, n, a in zip(names, *parts, strict=True)
    ]


def table_by_class(counts: Tensor, names: Sequence[str]) -> Table:
    """A row for each class that has images, or for the worst of many.

    Args:
        counts: ``(classes, classes)``, images by class and answer.
        names: of the classes.

    Example:
        >>> table_by_class(Tensor([[3, 1], [0, 2]]).int(), ["cat", "dog"]).rows[0]
        ['cat', '4', '75.00%', '100.00%', 'dog (1)']
    """
    classes, wrong, title = _by_class(counts, names), counts - counts.diag().diag(), "by class"
    known = [i for i, found in enumerate(classes) if found["images"]]
    if len(known) > _CLASSES_SHOWN:
        known.sort(key=lambda i: float(classes[i]["recall"]))
        title = f"the {_CLASSES_SHOWN} worst of {len(known)} classes"
    rows = []
    for i in known[:_CLASSES_SHOWN]:
        found, most = classes[i], int(wrong[i].argmax())
        taken = f"{names[most]} ({int(wrong[i, most])})" if wrong[i, most] else ""
        of_answers = "" if found["precision"] is None else f"{found['precision']:.2%}"
        rows.append([names[i], f"{found['images']:,}", f"{found['recall']:.2%}", of_answers, taken])
    return Table(title, ["class", "images", "of these right", "of its answers right", "most often taken for"], rows)
