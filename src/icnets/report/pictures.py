"""Test images on the page: those that two networks answer differently, and the worst confusions."""

import base64
import io
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.predict.contact_sheet import as_image, heated, unnormalized
from icnets.predict.grad_cam import GradCam
from icnets.report.inspection import Answers, Inspection

_SIDE = 96  # pixels that an image has at least, so that a heat map over a small one is smooth
_MOST = 160


def confusion_counts(answers: Answers, target: Tensor, classes: int) -> list[list[int]]:
    """Rows: classes; columns: answers."""
    flat = torch.bincount(target * classes + answers.classes, minlength=classes * classes)
    return flat.view(classes, classes).tolist()


def confusions(look: Inspection, *, pairs: int, images: int) -> list[dict[str, Any]]:
    """The most frequent confusions of the chosen network, the worst first: class, answer, how many, and some images."""
    labels = look.data.class_names
    answers = list(zip(look.target.tolist(), look.chosen.classes.tolist(), strict=True))
    counts = Counter((t, a) for t, a in answers if t != a)
    found = []
    for (t, a), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:pairs]:
        some = [i for i, pair in enumerate(answers) if pair == (t, a)][:images]
        shown = [_picture(_pixels(look, i), f"{look.names[i]}: class {labels[t]}, taken for {labels[a]}") for i in some]
        found.append({"target": labels[t], "answer": labels[a], "count": count, "images": shown})
    return found


def disagreements(look: Inspection, *, images: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Images that the two answer differently, and how many there are of each kind.

    Those that the chosen network alone gets right and those that the control alone gets right alternate, each by the
    confidence with which the other one errs.
    """
    control, chosen, target = look.control.classes, look.chosen.classes, look.target
    differ = control != chosen
    kinds = {
        "chosen": (differ & (chosen == target), look.control),
        "control": (differ & (control == target), look.chosen),
        "neither": (differ & (chosen != target) & (control != target), look.chosen),
    }
    queues = []
    for mask, doubted in kinds.values():
        sure = doubted.logits.softmax(1).amax(1).masked_fill(~mask, -1.0)
        queues.append(sure.argsort(descending=True, stable=True)[: int(mask.sum())].tolist())
    order = [i for row in range(images) for queue in queues for i in queue[row : row + 1]][:images]
    counts = {kind: int(mask.sum()) for kind, (mask, _) in kinds.items()}
    return (_shown(look, order) if order else []), counts


def _shown(look: Inspection, order: list[int]) -> list[dict[str, Any]]:
    """Each image, and what either network says with its Grad-CAM: answer, confidence, picture."""
    images, labels = look.images[order], look.data.class_names
    sides = []
    for answers in (look.control, look.chosen):
        said, sure = answers.classes[order], answers.logits.softmax(1).amax(1)[order]
        heat = GradCam(answers.network, images)(images, said)
        names = [labels[c] for c in said.tolist()]
        pictures = [
            _picture(heated(_pixels(look, i), h), f"Grad-CAM of {answers.method} for {name}")
            for i, h, name in zip(order, heat, names, strict=True)
        ]
        sides.append(list(zip(names, sure.tolist(), pictures, strict=True)))
    result = []
    for i, control, chosen in zip(order, *sides, strict=True):
        name, label = look.names[i], labels[int(look.target[i])]
        picture = _picture(_pixels(look, i), f"{name}, class {label}")
        result.append({"name": name, "target": label, "image": picture, "control": control, "chosen": chosen})
    return result


def _pixels(look: Inspection, index: int) -> Tensor:
    """The image as the network sees it, (3, H, W) in [0, 1], at least and at most so large."""
    pixels = unnormalized(look.images[index], look.data.mean, look.data.std)
    longest = max(pixels.shape[-2:])
    if longest < _SIDE:
        factor = -(-_SIDE // longest)
        return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if longest > _MOST:
        size = [max(1, round(side * _MOST / longest)) for side in pixels.shape[-2:]]
        return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels


def _picture(pixels: Tensor, alt: str) -> dict[str, str]:
    """An image as a data URI, and words for readers who don't see it (plain text)."""
    buffer = io.BytesIO()
    as_image(pixels).save(buffer, format="PNG", optimize=True)
    return {"uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), "alt": alt}
