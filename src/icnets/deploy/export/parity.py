"""An artifact beside the network it was made from: largest errors, classes and accuracies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

# An artifact: a float32 batch (N, C, *L) in, its outputs in order, on the CPU.
Runner = Callable[[Tensor], list[Tensor]]

Labelled = tuple[Tensor, Tensor | None]  # images, and their classes (N,) int64 where they are known

BATCHES = (1, 7)  # that the batch is dynamic is seen by two sizes, one of them 1


@dataclass(frozen=True)
class Parity:
    """The artifact beside PyTorch on one batch: ``inputs`` is "random" or "real", ``batch`` the number of images.

    ``absolute`` is the largest difference of an output; ``relative`` is that difference divided by the range (largest
    minus smallest value) of the output it is in.
    """

    inputs: str
    batch: int
    absolute: float
    relative: float


@dataclass(frozen=True)
class Agreement:
    """Both networks on the same images: parts of 1. Accuracies are None for images without labels."""

    images: int
    same_class: float
    accuracy_before: float | None
    accuracy_after: float | None

    @property
    def loss(self) -> float:
        """Accuracy lost; without labels, the part of the images that changed their class."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return 1 - self.same_class
        return self.accuracy_before - self.accuracy_after

    def __str__(self) -> str:
        changed = f"{1 - self.same_class:.2%} of {self.images} images changed their class"
        if self.accuracy_before is None or self.accuracy_after is None:
            return changed
        return (
            f"accuracy {self.accuracy_before:.2%} before, {self.accuracy_after:.2%} after "
            f"({100 * (self.accuracy_after - self.accuracy_before):+.2f} pp); {changed}"
        )


def eager(model: Callable[[Tensor], Any]) -> Runner:
    """The network in PyTorch, its outputs flattened."""

    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [t for t in _pytree.tree_leaves(model(x)) if isinstance(t, Tensor)]

    return run


def compare(reference: Runner, artifact: Runner, inputs: str, x: Tensor) -> Parity:
    """The largest error of ``artifact`` on the batch ``x``.

    Raises ValueError where the two differ in number or shape of outputs, or one of them isn't finite.
    """
    expected, found = reference(x), artifact(x)
    shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the artifact's outputs have shapes {shapes[1]}, the network's {shapes[0]}; it isn't kept")
    absolute = relative = 0.0
    for one, other in zip(expected, found, strict=True):
        if not torch.isfinite(one).all():
            raise ValueError(f"the network's own output on {inputs} inputs isn't finite; give it usable weights first")
        if not torch.isfinite(other).all():
            raise ValueError(f"the artifact's output on {inputs} inputs isn't finite, the network's is; it isn't kept")
        difference = float((one.double() - other.double()).abs().max())
        span = float(one.max() - one.min()) or float(one.abs().max()) or 1.0
        absolute, relative = max(absolute, difference), max(relative, difference / span)
    return Parity(inputs, x.shape[0], absolute, relative)


def labelled(batches: Iterable[Any], limit: int | None = None) -> list[Labelled]:
    """Images and labels of batches, at most ``limit`` images in all.

    A batch is a tensor, or a tuple or list that starts with one; else TypeError. Targets that aren't integers, such as
    those of mixup, don't count as labels.
    """
    found: list[Labelled] = []
    for batch in batches:
        left = None if limit is None else limit - sum(len(x) for x, _ in found)
        if left is not None and left <= 0:
            break
        x, *rest = batch if isinstance(batch, tuple | list) and batch else (batch,)
        if not isinstance(x, Tensor):
            raise TypeError(f"a batch is a {type(x).__name__}; it must be a tensor, or a tuple that starts with one")
        label = rest[0] if rest and isinstance(rest[0], Tensor) else None
        if label is not None and (label.dim() != 1 or label.is_floating_point()):
            label = None
        if label is not None and len(label) != len(x):
            raise ValueError(f"a batch of the data has {len(x)} images and {len(label)} labels")
        found.append((x.detach().cpu().float()[:left], None if label is None else label.detach().cpu()[:left]))
    return found


def agreement(reference: Runner, artifact: Runner, batches: Sequence[Labelled]) -> Agreement | None:
    """Classes and accuracies of both on the same images; None where the output isn't one row of logits per image."""
    outputs = [(reference(x), artifact(x)) for x, _ in batches]
    if not sum(len(x) for x, _ in batches) or any(len(o) != 1 or o[0].dim() != 2 for pair in outputs for o in pair):
        return None
    before, after = (torch.cat([pair[i][0].argmax(1) for pair in outputs]) for i in (0, 1))
    labels = [label for _, label in batches if label is not None]
    rates: list[float | None] = [None, None]
    if len(labels) == len(batches):
        rates = [int((classes == torch.cat(labels)).sum()) / len(before) for classes in (before, after)]
    return Agreement(len(before), int((before == after).sum()) / len(before), *rates)
