"""What is looked at before the first step: can the network take the images, does the teacher know anything of them?"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from icnets.data.epochs import read_again
from icnets.distill.teacher import Teacher
from icnets.support.hooks import modes_kept
from icnets.support.text import first_line

__all__ = ["check_first_batch", "guessed", "require_better_than_guessing"]

_IMAGES = 200  # are asked for
_FEWEST = 100  # say something
_DOUBT = 0.05  # that guessing does as well


def check_first_batch(task: Any, batch: tuple[Tensor, Tensor], *, check_teacher: bool) -> None:
    """Raises ValueError where a training couldn't go well; leaves networks and random numbers as they are.

    Args:
        task: a ClassificationTask in training.
        batch: x (N, C, H, W) and target, the first of the training.
        check_teacher: also refuse a teacher that is no better than guessing, unless the training is a resumed one.
    """
    x = task.images(batch[0][:2])
    try:
        # Eager: two images are no reason to compile.
        with modes_kept(task.network), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = task.network.eval()(x)
    except (RuntimeError, AttributeError) as error:  # the latter where options left out one of its layers
        raise ValueError(f"the network can't take images of shape {tuple(x.shape[1:])}: {first_line(error)}") from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), task.num_classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"the network gives {found} for {len(x)} images of {task.num_classes} classes")
    if task.teacher is None:
        return
    with torch.compiler.set_stance("force_eager"):
        task.teacher.check(task.network, x)
    if check_teacher and task.global_step == 0:
        batches = ((task.images(x), target) for x, target in _first_batches(task.trainer, batch))
        total = partial(task.trainer.strategy.reduce, reduce_op="sum")
        require_better_than_guessing(task.teacher, batches, total)


def _first_batches(trainer: Any, first: Any) -> Iterable[Any]:
    if not hasattr(getattr(trainer, "datamodule", None), "training_batch"):
        return [first]
    return chain([first], (read_again(trainer, 0, number) for number in range(1, trainer.num_training_batches)))


def guessed(right: int, images: int, classes: int) -> float:
    """The probability that guessing among ``classes`` gets ``right`` or more of ``images``, in [0, 1]."""
    if right == 0:
        return 1.0
    p, q = math.log(1 / classes), math.log1p(-1 / classes)
    ways = (math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1) for k in range(right))
    fewer = math.fsum(math.exp(way + k * p + (images - k) * q) for k, way in enumerate(ways))
    return max(1.0 - fewer, 0.0)


@torch.no_grad()
def require_better_than_guessing(
    teacher: Teacher, batches: Iterable[tuple[Tensor, Tensor]], total: Callable[[Tensor], Tensor]
) -> None:
    """Raises ValueError where the teacher's accuracy can't be told from that of guessing.

    Args:
        teacher: of C classes, more than one.
        batches: x (N, C_in, H, W); target (N,) int64, or (N, C), of which the largest counts. So many are read as make
            200 images; of fewer than 100 nothing is said.
        total: the sum of a tensor over all processes.
    """
    right = images = 0
    for x, target in batches:
        logits = teacher(x)
        labels = target.argmax(1) if target.ndim > 1 else target
        counts = total(torch.stack([(logits.argmax(1) == labels).sum(), torch.tensor(len(x), device=x.device)]))
        right, images = right + int(counts[0]), images + int(counts[1])
        if images >= _IMAGES:
            break
    classes = logits.shape[1]
    if images >= _FEWEST and guessed(right, images, classes) > _DOUBT:
        raise ValueError(
            f"the teacher is right on {right} of {images} training images ({right / images:.1%}), and guessing among "
            f"{classes} classes on {1 / classes:.1%}: it has nothing to teach. Give another one (is it trained, of "
            "these classes, with this normalisation?), or check_teacher false"
        )
