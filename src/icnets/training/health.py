"""What ends a training that can't go well: a first batch that doesn't fit the network, a loss that is no number."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icnets.support.hooks import modes_kept
from icnets.support.text import first_line

_EVERY = 20  # steps between looks on a GPU, where each look waits for the queue


def check_first_batch(task: Any, x: Tensor) -> None:
    """Raises ValueError where a training couldn't go well; leaves networks and random numbers as they are.

    Args:
        task: a ClassificationTask in training.
        x: the first images of the training, (N, C, H, W).
    """
    x = task.images(x[:2])
    # Eager: two images are no reason to compile.
    with torch.compiler.set_stance("force_eager"):
        try:
            with modes_kept(task.network), torch.no_grad():
                logits = task.network.eval()(x)
        except (RuntimeError, AttributeError) as error:  # the latter where options left out one of its layers
            shape = tuple(x.shape[1:])
            raise ValueError(f"the network can't take images of shape {shape}: {first_line(error)}") from error
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), task.num_classes):
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the network gives {found} for {len(x)} images of {task.num_classes} classes")
        if task.teacher is not None:
            task.teacher.check(task.network, x)


class BadLoss(NamedTuple):
    """A loss that is no finite number, and where it was."""

    loss: float
    step: int
    epoch: int
    batch: int


class LossWatch:
    """Watches the losses of a training without waiting for the device at each step.

    Example:
        >>> watch = LossWatch()
        >>> watch.update(torch.tensor(2.3), step=0, epoch=0, batch=0)
        >>> watch.update(torch.tensor(math.nan), step=1, epoch=0, batch=1)
        BadLoss(loss=nan, step=1, epoch=0, batch=1)
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, tuple[int, int, int]]] = []

    def update(self, loss: Tensor, step: int, epoch: int, batch: int) -> BadLoss | None:
        """Takes in the loss of a step; gives the first bad one since the last look, if it looked."""
        self._waiting.append((loss.detach(), (step, epoch, batch)))
        return self.look() if loss.device.type == "cpu" or len(self._waiting) >= _EVERY else None

    def look(self) -> BadLoss | None:
        """Waits for the device, and gives the first bad loss of those that weren't looked at yet."""
        waiting, self._waiting = self._waiting, []
        losses = torch.stack([loss for loss, _ in waiting]).tolist() if waiting else []
        bad = (BadLoss(loss, *at) for loss, (_, at) in zip(losses, waiting, strict=True) if not math.isfinite(loss))
        return next(bad, None)
