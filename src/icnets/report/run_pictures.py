"""Pictures in a run's folder: a batch, the curves of its training, what it confuses and its worst mistakes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from icnets.predict.contact_sheet import picture, save_sheet
from icnets.report.charts import paint_confusion, paint_losses, save_chart
from icnets.support.text import one_line
from icnets.training.by_class import Mistake, ValidationCounts
from icnets.training.callbacks import History

_SAMPLE = 32  # images of a batch that are shown


@contextmanager
def never_fatal(path: Path) -> Iterator[Path]:
    """Yields ``path``, and makes one line on stderr of what goes wrong in the block: a run is worth more."""
    try:
        yield path
    except Exception as error:
        print(f"icnets: can't write {path}: {one_line(error)}", file=sys.stderr, flush=True)


class SampleBatch(Callback):
    """Draws the first batch of a training as the network sees it, augmented and mixed, to ``batch.png`` in ``folder``.

    It is the very batch, so nothing random is drawn for it.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._drawn = folder / "batch.png", False

    def on_train_batch_start(self, trainer: Any, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._drawn or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self._drawn, data = True, trainer.datamodule
        with never_fatal(self.path) as path:
            names, (images, targets) = data.class_names, (part[:_SAMPLE].float().cpu() for part in batch)
            tiles = [
                (picture(image, getattr(data, "mean", (0.0,)), getattr(data, "std", (1.0,))), _label(target, names))
                for image, target in zip(images, targets, strict=True)
            ]
            save_sheet(tiles, path)


def _label(target: Tensor, names: Sequence[str]) -> list[str]:
    """The class of a target, a number; of a mixed one (classes,), the two of which there is most."""
    if target.ndim == 0:
        return [names[int(target)]]
    most = target.topk(2)
    pairs = zip(most.values.tolist(), most.indices.tolist(), strict=True)
    return [names[i] + (f" {share:.0%}" if share < 0.995 else "") for share, i in pairs if share >= 0.005]


def save_pictures(trainer: Any, folder: Path) -> None:
    """Draws what a training has to show at its end: curves.png and confusion.png."""
    if trainer.fast_dev_run:
        return
    kept = {type(callback): callback for callback in trainer.callbacks}
    if rows := kept[History].rows:
        with never_fatal(folder / "curves.png") as path:
            save_curves(rows, path)
    counts = getattr(kept.get(ValidationCounts), "counts", None)
    if counts is not None:
        with never_fatal(folder / "confusion.png") as path:
            save_confusion(counts.tolist(), trainer.datamodule.class_names, path)


def save_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the losses and val/top1 by epoch.

    Args:
        rows: of :class:`icnets.training.callbacks.History`; what one lacks isn't drawn.
        path: of the PNG file.
    """

    points = {m: [(row["epoch"], row[m]) for row in rows if m in row] for m in ("train/loss", "val/loss", "val/top1")}

    def paint(panels: Any) -> None:
        losses, top1 = panels
        paint_losses(losses, {"": points})
        if losses.lines:
            losses.legend()
        top1.plot([epoch for epoch, _ in points["val/top1"]], [100 * top for _, top in points["val/top1"]], "o-")
        top1.set(xlabel="epoch", ylabel="val/top1, %", ylim=(0, 100))
        top1.xaxis.get_major_locator().set_params(integer=True)

    save_chart(path, paint, size=(9, 3.8), columns=2)


def save_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Draws validation images by class (rows) and answer (columns) to a PNG file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_confusion([[9, 1], [0, 8]], ["cat", "dog"], Path(folder, "confusion.png"))
    """
    side = min(5 + 0.22 * max(len(names) - 10, 0), 12)

    def paint(axes: Any) -> None:
        paint_confusion(axes, counts, names, most_ticks=60)
        axes.set_title("validation images, epoch of the best val/top1", fontsize=10)

    save_chart(path, paint, size=(side, side))


def save_mistakes(mistakes: Sequence[Mistake], data: Any, path: Path) -> None:
    """Draws the most confident wrong answers on one sheet: the class, then the answer with its probability.

    Without any, a sheet of before is removed.
    """
    if not mistakes:
        path.unlink(missing_ok=True)
        return
    names = data.class_names
    words = [[f"class: {names[m.target]}", f"answer: {m.probability:.0%} {names[m.answer]}"] for m in mistakes]
    images = [picture(m.image, data.mean, data.std) for m in mistakes]
    save_sheet(list(zip(images, words, strict=True)), path)
