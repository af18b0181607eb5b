"""A look at two trained networks of a comparison: what they answer to the test images, and where they disagree."""

import base64
import io
import sys
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from icnets.comparison.comparison_table import Row
from icnets.comparison.planned_runs import Job, entries, plan
from icnets.comparison.run_files import ComparisonFiles
from icnets.comparison.runs import load, make_data
from icnets.predict.contact_sheet import as_image, heated, unnormalized
from icnets.predict.grad_cam import GradCam
from icnets.support.text import differing

_SIDE = 96  # pixels that an image has at least, so that a heat map over a small one is smooth
_MOST = 160


@dataclass(frozen=True)
class Answers:
    """Logits (N, classes) of a method's network for the test images."""

    method: str
    network: nn.Module
    logits: Tensor

    @property
    def classes(self) -> Tensor:
        return self.logits.argmax(1)


@dataclass(frozen=True)
class Inspection:
    """Two networks on the test images ``images`` (N, C, H, W), whose classes are ``target`` (N,)."""

    data: Any
    names: list[str]
    images: Tensor
    target: Tensor
    control: Answers
    chosen: Answers


def chosen_method(comparison: ComparisonFiles) -> Row | None:
    """The row of the IC network with the least mean test error; None without any."""
    units = [row for row in comparison.rows if row.cost.parameters.ic]
    return min(units, key=lambda row: row.error.mean, default=None)


def inspect(comparison: ComparisonFiles, row: Row) -> Inspection:
    """The network of ``row`` and its control's, for the first seed, on that seed's test images.

    Raises:
        ValueError: the images, or the checkpoints of the two, aren't there any more, or don't fit.
    """
    seed, record = comparison.runs[row.name][0].seed, comparison.record["data"]
    data = make_data(record["arguments"], seed)
    if data.size("test") != record["images"]["test"]:
        raise ValueError(f"the test images were {record['images']['test']} and are {data.size('test')} now")
    if list(data.class_names) != record["classes"]:
        then, now = differing(record["classes"], data.class_names)
        raise ValueError(f"the networks were trained on {then}, and the images are of {now} now")
    jobs = plan(comparison.settings)
    names = {entry.cell: entry.name for entry in entries(comparison.settings, jobs)}
    by_name = {names[job.cell]: job for job in jobs if job.seed == seed}
    images, target, files = images_of_test(data)
    control, chosen = (_answers(name, by_name[name], data, images) for name in (str(row.control), row.name))
    return Inspection(data, files, images, target, control, chosen)


def images_of_test(data: Any, most: int = sys.maxsize) -> tuple[Tensor, Tensor, list[str]]:
    """Test images that can be read, at most so many, evenly spread: (N, C, H, W), their classes (N,) and names."""
    whole, count, names = data.test_dataloader(), data.size("test"), data.names("test")
    chosen = range(0, count, -(-count // most))
    options = {"batch_size": 64, "collate_fn": whole.collate_fn, "num_workers": whole.num_workers}
    images, target = (
        torch.cat(parts) for parts in zip(*DataLoader(whole.dataset, sampler=chosen, **options), strict=True)
    )
    there = target >= 0
    return images[there], target[there], [names[i] for i in torch.tensor(chosen)[there].tolist()]


def _answers(name: str, job: Job, data: Any, images: Tensor) -> Answers:
    if job.keep is None or not job.keep.is_file():
        raise ValueError(f"there is no checkpoint of {name!r}" + (f", {job.keep}" if job.keep else ""))
    return answers(name, load(job.keep, job.network, data, job.settings.imports).eval(), images)


def answers(name: str, network: nn.Module, images: Tensor) -> Answers:
    """Of a network in eval mode; raises ValueError where they aren't finite."""
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in images.split(256)])
    if not bool(logits.isfinite().all()):
        raise ValueError(f"the network of {name!r} gives no finite answers")
    return Answers(name, network, logits)


def confusion_counts(answers: Answers, target: Tensor, classes: int) -> list[list[int]]:
    """Rows: classes; columns: answers."""
    flat = torch.bincount(target * classes + answers.classes, minlength=classes * classes)
    return flat.view(classes, classes).tolist()


def disagreements(look: Inspection, *, images: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Images that the two answer differently, and how many there are of each kind.

    Those that the chosen network alone gets right and those that the control alone gets right alternate, each by the
    confidence with which the other one errs.
    """
    chosen, control = (answers.classes == look.target for answers in (look.chosen, look.control))  # right
    differ = look.control.classes != look.chosen.classes
    kinds = {
        "chosen": (differ & chosen, look.control),
        "control": (differ & control, look.chosen),
        "neither": (differ & ~chosen & ~control, look.chosen),
    }
    counts, queues = dict[str, int](), list[list[int]]()
    for kind, (mask, doubted) in kinds.items():
        counts[kind] = int(mask.sum())
        sure = doubted.logits.softmax(1).amax(1).masked_fill(~mask, -1.0)
        queues.append(sure.argsort(descending=True, stable=True)[: counts[kind]].tolist())
    order = [i for row in zip_longest(*queues) for i in row if i is not None][:images]
    return (_shown(look, order) if order else []), counts


def _shown(look: Inspection, order: list[int]) -> list[dict[str, Any]]:
    """Each image, and what either network says with its Grad-CAM: answer, confidence, picture."""
    labels, images, shown = look.data.class_names, look.images[order], list[dict[str, Any]]()
    for i in order:
        name, label = look.names[i], labels[int(look.target[i])]
        shown.append({"name": name, "target": label, "image": _picture(_pixels(look, i), f"{name}, class {label}")})
    for side, answers in (("control", look.control), ("chosen", look.chosen)):
        said = answers.classes[order]
        heat = GradCam(answers.network, images)(images, said)
        for entry, i, c, h in zip(shown, order, said.tolist(), heat, strict=True):
            picture = _picture(heated(_pixels(look, i), h), f"Grad-CAM of {answers.method} for {labels[c]}")
            entry[side] = labels[c], float(answers.logits[i].softmax(0).amax()), picture
    return shown


def _pixels(look: Inspection, index: int) -> Tensor:
    """The image as the network sees it, (3, H, W) in [0, 1], at least and at most so large."""
    pixels = unnormalized(look.images[index], look.data.mean, look.data.std)
    longest = max(pixels.shape[-2:])
    if longest < _SIDE:
        return F.interpolate(pixels[None], scale_factor=-(-_SIDE // longest))[0]
    size = [max(1, round(side * min(1, _MOST / longest))) for side in pixels.shape[-2:]]
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]


def _picture(pixels: Tensor, alt: str) -> dict[str, str]:
    """An image as a data URI, and words for readers who don't see it (plain text)."""
    buffer = io.BytesIO()
    as_image(pixels).save(buffer, format="PNG", optimize=True)
    return {"uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), "alt": alt}
