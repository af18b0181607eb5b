"""Test images on the page: those that two networks answer differently, and the worst confusions."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.predict.contact_sheet import as_image, heated, unnormalized
from icnets.predict.grad_cam import GradCam
from icnets.report.inspection import Answers, Inspection

__all__ = ["Confusion", "Disagreement", "Picture", "confusion_counts", "confusions", "disagreements"]

_SIDE = 96  # pixels that an image has at least, so that a heat map over a small one is smooth
_MOST = 160


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and words for who doesn't see it (plain text)."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Disagreement:
    """An image that two networks answer differently: itself, and what each says with its Grad-CAM."""

    name: str
    target: str
    image: Picture
    control: tuple[str, float, Picture]
    chosen: tuple[str, float, Picture]


@dataclass(frozen=True)
class Confusion:
    """Images of class ``target`` that a network takes for ``answer``: how many, and some of them."""

    target: str
    answer: str
    count: int
    images: list[Picture]


def confusion_counts(answers: Answers, target: Tensor, classes: int) -> list[list[int]]:
    """Rows: classes; columns: answers."""
    flat = torch.bincount(target * classes + answers.classes, minlength=classes * classes)
    return flat.view(classes, classes).tolist()


def confusions(look: Inspection, *, pairs: int, images: int) -> list[Confusion]:
    """The most frequent confusions of the chosen network, the worst first."""
    labels = look.data.class_names
    wrong = [
        (t, a, i)
        for i, (t, a) in enumerate(zip(look.target.tolist(), look.chosen.classes.tolist(), strict=True))
        if t != a
    ]
    counts = Counter((t, a) for t, a, _ in wrong)
    found = []
    for (t, a), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:pairs]:
        some = [i for x, y, i in wrong if (x, y) == (t, a)][:images]
        shown = [_picture(_pixels(look, i), f"{look.names[i]}: class {labels[t]}, taken for {labels[a]}") for i in some]
        found.append(Confusion(labels[t], labels[a], count, shown))
    return found


def disagreements(look: Inspection, *, images: int) -> tuple[list[Disagreement], dict[str, int]]:
    """Images that the two answer differently, and how many there are of each kind.

    Those that the chosen network alone gets right and those that the control alone gets right alternate, each by the
    confidence with which the other one errs.
    """
    control, chosen, target = look.control.classes, look.chosen.classes, look.target
    differ = control != chosen
    kinds = {
        "chosen": differ & (chosen == target),
        "control": differ & (control == target),
        "neither": differ & (chosen != target) & (control != target),
    }
    doubts = {"chosen": look.control, "control": look.chosen, "neither": look.chosen}
    queues = []
    for kind, mask in kinds.items():
        sure = doubts[kind].logits.softmax(1).amax(1).masked_fill(~mask, -1.0)
        queues.append(sure.argsort(descending=True, stable=True)[: int(mask.sum())].tolist())
    order = [i for row in range(images) for queue in queues for i in queue[row : row + 1]][:images]
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    return (_shown(look, order) if order else []), counts


def _shown(look: Inspection, order: list[int]) -> list[Disagreement]:
    images, labels = look.images[order], look.data.class_names
    sides = []
    for answers in (look.control, look.chosen):
        said, sure = answers.classes[order], answers.logits.softmax(1).amax(1)[order]
        heat = GradCam(answers.network, images)(images, said)
        sides.append(
            [
                (
                    labels[c],
                    float(p),
                    _picture(heated(_pixels(look, i), h), f"Grad-CAM of {answers.method} for {labels[c]}"),
                )
                for i, c, p, h in zip(order, said.tolist(), sure.tolist(), heat, strict=True)
            ]
        )
    result = []
    for i, control, chosen in zip(order, *sides, strict=True):
        name, label = look.names[i], labels[int(look.target[i])]
        picture = _picture(_pixels(look, i), f"{name}, class {label}")
        result.append(Disagreement(name, label, picture, control, chosen))
    return result


def _pixels(look: Inspection, index: int) -> Tensor:
    """The image as the network sees it, (3, H, W) in [0, 1], at least and at most so large."""
    pixels = unnormalized(look.images[index], look.data.mean, look.data.std)
    height, width = pixels.shape[-2:]
    if max(height, width) < _SIDE:
        factor = -(-_SIDE // max(height, width))
        return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if max(height, width) > _MOST:
        scale = _MOST / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels


def _picture(pixels: Tensor, alt: str) -> Picture:
    buffer = io.BytesIO()
    as_image(pixels).save(buffer, format="PNG", optimize=True)
    return Picture("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), alt)
