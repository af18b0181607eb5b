"""An artifact beside the network it was made from: largest errors, classes and accuracies, and their report."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        before, after = self.accuracy_before, self.accuracy_after
        if before is None or after is None:
            return changed
        return f"accuracy {before:.2%} before, {after:.2%} after ({100 * (after - before):+.2f} pp); {changed}"


@dataclass(frozen=True)
class ExportReport:
    """An artifact that was reloaded by its engine and compared with PyTorch.

    ``parity`` holds the comparisons of the artifact in float32 with the network that was given. With ``int8`` the file
    at ``path`` is the quantised artifact; ``int8_parity`` is its own distance, and ``agreement`` what it does to
    classes and accuracy (None for networks that aren't classifiers).
    """

    path: Path
    format: str
    engine: str
    size: int
    fused: bool
    tolerance: float
    parity: tuple[Parity, ...]
    int8: bool = False
    int8_parity: tuple[Parity, ...] = ()
    agreement: Agreement | None = None

    @property
    def max_error(self) -> float:
        """Largest absolute error in float32."""
        return max(p.absolute for p in self.parity)

    @property
    def max_relative_error(self) -> float:
        """Largest error in float32 relative to the output's range: what ``tolerance`` bounds."""
        return max(p.relative for p in self.parity)

    def __str__(self) -> str:
        kind = f"{self.format}, {'int8' if self.int8 else 'float32'}{', fused' if self.fused else ''}"
        size = f"{self.size / 1e6:.2f} MB, reloaded by {self.engine}"
        allowed = f" (allowed: {self.tolerance:g} of it)"
        lines = [f"{self.path}: {kind}, {size}", _errors("largest error to PyTorch", self.parity, allowed)]
        lines += [_errors("int8: largest error", self.int8_parity)] if self.int8 else []
        lines += [f"int8: {self.agreement}"] if self.agreement is not None else []
        return "\n".join(lines)


def _errors(what: str, parity: tuple[Parity, ...], allowed: str = "") -> str:
    absolute, relative = (max(getattr(p, name) for p in parity) for name in ("absolute", "relative"))
    batches = ", ".join(f"{p.batch} {p.inputs}" for p in parity)
    return f"{what}: {absolute:.2g}, {relative:.2g} of the output's range{allowed}; batches: {batches}"


# -- the comparison -------------------------------------------------------------------------------------------------


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


def labelled(batches: Iterable[Any], limit: int = sys.maxsize) -> list[Labelled]:
    """Images and labels of batches, at most ``limit`` images in all.

    A batch is a tensor, or a tuple or list that starts with one; else TypeError. Targets that aren't integers, such as
    those of mixup, don't count as labels.
    """
    found: list[Labelled] = []
    for batch in batches:
        if (left := limit - sum(len(x) for x, _ in found)) <= 0:
            break
        x, *rest = batch if isinstance(batch, tuple | list) and batch else (batch,)
        if not isinstance(x, Tensor):
            raise TypeError(f"a batch is a {type(x).__name__}; it must be a tensor, or a tuple that starts with one")
        labels = [t for t in rest[:1] if isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point()]
        if labels and len(labels[0]) != len(x):
            raise ValueError(f"a batch of the data has {len(x)} images and {len(labels[0])} labels")
        found.append((x.detach().cpu().float()[:left], labels[0].detach().cpu()[:left] if labels else None))
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
