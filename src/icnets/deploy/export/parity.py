"""An artefact beside the network it was made from."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from icnets.deploy.export.export_report import Agreement, Parity

__all__ = ["BATCHES", "Runner", "agreement", "compare", "eager", "first_images", "split"]

# An artefact: a float32 batch (N, C, *L) in, its outputs in order, on the CPU.
Runner = Callable[[Tensor], list[Tensor]]

BATCHES = (1, 7)  # that the batch is dynamic is seen by two sizes, one of them 1


def eager(model: nn.Module) -> Runner:
    """The network in PyTorch, its outputs flattened."""

    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [t for t in _pytree.tree_leaves(model(x)) if isinstance(t, Tensor)]

    return run


def compare(reference: Runner, artefact: Runner, inputs: str, x: Tensor) -> Parity:
    """The largest error of ``artefact`` on the batch ``x``.

    Raises ValueError where the two differ in number or shape of outputs, or one of them isn't finite.
    """
    expected, found = reference(x), artefact(x)
    shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the artefact's outputs have shapes {shapes[1]}, the network's {shapes[0]}; it isn't kept")
    absolute = relative = 0.0
    for one, other in zip(expected, found, strict=True):
        if not torch.isfinite(one).all():
            raise ValueError(f"the network's own output on {inputs} inputs isn't finite; give it usable weights first")
        if not torch.isfinite(other).all():
            raise ValueError(f"the artefact's output on {inputs} inputs isn't finite, the network's is; it isn't kept")
        difference = float((one.double() - other.double()).abs().max())
        span = float(one.max() - one.min()) or float(one.abs().max()) or 1.0
        absolute, relative = max(absolute, difference), max(relative, difference / span)
    return Parity(inputs, x.shape[0], absolute, relative)


def split(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels ``(N,)`` int64 of a batch: a tensor, or a tuple or list that starts with one. Else TypeError.

    Targets that aren't integers, such as those of mixup, don't count as labels.
    """
    rest: Sequence[Any] = ()
    if isinstance(batch, tuple | list) and batch:
        batch, rest = batch[0], batch[1:]
    if not isinstance(batch, Tensor):
        raise TypeError(f"a batch is a {type(batch).__name__}; it must be a tensor, or a tuple that starts with one")
    label = rest[0] if rest and isinstance(rest[0], Tensor) else None
    is_label = label is not None and label.dim() == 1 and not label.is_floating_point()
    return batch.detach().cpu().float(), label.detach().cpu() if is_label and label is not None else None


def first_images(batches: Iterable[Any], limit: int) -> list[Tensor]:
    """Images of the first batches, ``limit`` at most in all."""
    images: list[Tensor] = []
    left = limit
    for batch in batches:
        x = split(batch)[0][:left]
        images.append(x)
        left -= len(x)
        if left <= 0:
            break
    return images


def agreement(reference: Runner, artefact: Runner, batches: Iterable[Any]) -> Agreement | None:
    """Classes and accuracies of both on the same images; None where the output isn't one row of logits per image."""
    images = same = before = after = labelled = 0
    for batch in batches:
        x, label = split(batch)
        outputs = reference(x), artefact(x)
        if any(len(o) != 1 or o[0].dim() != 2 for o in outputs):
            return None
        first, second = (o[0].argmax(1) for o in outputs)
        images += len(x)
        same += int((first == second).sum())
        if label is not None:
            labelled += len(x)
            before += int((first == label).sum())
            after += int((second == label).sum())
    if not images:
        return None
    known = labelled == images
    return Agreement(images, same / images, before / images if known else None, after / images if known else None)
