"""What ends a training that can't go well: its first batch, a teacher that only guesses, a loss that runs away."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icnets.data.epochs import read_again
from icnets.distill.teacher import Teacher
from icnets.support.hooks import modes_kept
from icnets.support.text import few, first_line

_IMAGES = 200  # that a teacher answers
_FEWEST = 100  # that say something
_DOUBT = 0.05  # probability that guessing does as well
_EVERY = 20  # steps between looks on a GPU, where each look waits for the queue
_MEMORY = 0.95  # of the running mean, per step
_FACTOR = 3.0  # A training has failed when its running mean is so many times what it began with.


def check_first_batch(task: Any, batch: tuple[Tensor, Tensor], *, check_teacher: bool) -> None:
    """Raises ValueError where a training couldn't go well; leaves networks and random numbers as they are.

    Args:
        task: a ClassificationTask in training.
        batch: x (N, C, H, W) and target, the first of the training.
        check_teacher: also refuse a teacher that is no better than guessing, unless the training is a resumed one.
    """
    x = task.images(batch[0][:2])
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
    if task.teacher is not None and check_teacher and task.global_step == 0:
        batches = ((task.images(x), target) for x, target in _first_batches(task.trainer, batch))
        total = partial(task.trainer.strategy.reduce, reduce_op="sum")
        require_better_than_guessing(task.teacher, batches, total)


def _first_batches(trainer: Any, first: Any) -> Iterable[Any]:
    if not hasattr(getattr(trainer, "datamodule", None), "training_batch"):
        return [first]
    return chain([first], (read_again(trainer, 0, number) for number in range(1, trainer.num_training_batches)))


@torch.no_grad()
def require_better_than_guessing(
    teacher: Teacher, batches: Iterable[tuple[Tensor, Tensor]], total: Callable[[Tensor], Tensor]
) -> None:
    """Raises ValueError where the teacher's accuracy can't be told from that of guessing, by a binomial test.

    Args:
        teacher: of C classes, more than one.
        batches: x (N, C_in, H, W); target (N,) int64, or (N, C), of which the largest counts. So many are read as make
            200 images; of fewer than 100 nothing is said.
        total: the sum of a tensor over all processes.
    """
    from scipy.stats import binom

    right = images = 0
    for x, target in batches:
        logits = teacher(x)
        labels = target.argmax(1) if target.ndim > 1 else target
        counts = total(torch.stack([(logits.argmax(1) == labels).sum(), torch.tensor(len(x), device=x.device)]))
        right, images = right + int(counts[0]), images + int(counts[1])
        if images >= _IMAGES:
            break
    classes = logits.shape[1]
    if images >= _FEWEST and binom.sf(right - 1, images, 1 / classes) > _DOUBT:
        raise ValueError(
            f"the teacher is right on {right} of {images} training images ({right / images:.1%}), and guessing among "
            f"{classes} classes on {1 / classes:.1%}: it has nothing to teach. Give another one (is it trained, of "
            "these classes, with this normalisation?), or check_teacher false"
        )


class BadLoss(NamedTuple):
    """Where a training went wrong, and why."""

    step: int
    epoch: int
    batch: int
    why: str

    def message(self, images: Sequence[str], checkpoint: Any) -> str:
        """One line for the user: why, where, which images, and from where to go on."""
        parts = [f"{self.why} at step {self.step} (epoch {self.epoch}, batch {self.batch})"]
        if images:
            parts.append(f"its images: {few(images, 8)}")
        parts.append(f"last good checkpoint: {checkpoint}" if checkpoint else "no checkpoint was saved before")
        return "; ".join(parts) + ". Lower lr, lengthen warmup, or check the images' values"


class LossWatch:
    """Watches the losses of a training without waiting for the device at each step.

    Args:
        chance: a loss that is no worse than guessing, in the loss's own unit (nats); a run begins somewhere there.

    Example:
        >>> watch = LossWatch(chance=math.log(10))
        >>> watch.update(torch.tensor(2.3), step=0, epoch=0, batch=0)
        >>> watch.update(torch.tensor(math.nan), step=1, epoch=0, batch=1).why
        'the loss is no finite number (nan)'
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self._mean = self._limit = math.nan  # until the first loss
        self._waiting: list[tuple[Tensor, tuple[int, int, int]]] = []

    def update(self, loss: Tensor, step: int, epoch: int, batch: int) -> BadLoss | None:
        """Takes in the loss of a step; gives the first bad one since the last look, if it looked."""
        self._waiting.append((loss.detach(), (step, epoch, batch)))
        return self.look() if loss.device.type == "cpu" or len(self._waiting) >= _EVERY else None

    def look(self) -> BadLoss | None:
        """Waits for the device, and gives the first bad loss of those that weren't looked at yet."""
        waiting, self._waiting = self._waiting, []
        losses = torch.stack([loss for loss, _ in waiting]).tolist() if waiting else []
        for loss, (_, place) in zip(losses, waiting, strict=True):
            if not math.isfinite(loss):
                return BadLoss(*place, f"the loss is no finite number ({loss})")
            if math.isnan(self._mean):
                self._mean, self._limit = loss, _FACTOR * max(loss, self.chance)
            self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
            if self._mean > self._limit:
                limit = f"beyond {self._limit:.4g}"
                return BadLoss(*place, f"the loss has run away: its running mean is {self._mean:.4g}, {limit}")
        return None
