"""A look at two trained networks of a comparison: what they answer to the test images, and what the units do."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icnets.compare.comparison_table import Row
from icnets.compare.data_kinds import make_data
from icnets.compare.planned_runs import entries, plan
from icnets.compare.run_files import ComparisonFiles
from icnets.compare.runs import Job, build, load
from icnets.profile.firing import firing_rates
from icnets.support.text import differing
from icnets.unit.layers import IC_LAYERS

_FIRING_IMAGES = 256


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
class Units:
    """For each unit, before training and after: share of places in which it fires, and w' x sqrt(n) by channel."""

    rates: dict[str, tuple[float, float]]
    weights: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Inspection:
    """Two networks of one seed on the test images ``images`` (N, C, H, W), whose classes are ``target`` (N,)."""

    seed: int
    data: Any
    names: list[str]
    images: Tensor
    target: Tensor
    control: Answers
    chosen: Answers
    units: Units


def chosen_method(comparison: ComparisonFiles, name: str | None) -> Row | None:
    """The row of ``name``; else that of the IC network with the least mean test error, None without any.

    Raises:
        ValueError: there is no such method, or it is the basic network.
    """
    rows = {row.name: row for row in comparison.rows if row.control is not None}
    if name is not None and name not in rows:
        raise ValueError(f"--method is {name!r}; it must be one of {', '.join(rows)}")
    units = [row for row in comparison.rows if row.cost.parameters.ic]
    return min(units, key=lambda row: row.error.mean, default=None) if name is None else rows[name]


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
    planned = plan(comparison.settings)
    names = {entry.cell: entry.name for entry in entries(comparison.settings, planned)}
    jobs = {names[p.cell]: p.job for p in planned if p.seed == seed}
    images, target = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    there = target >= 0
    files = data.names("test")
    images = images[there]
    control, chosen = (_answers(name, jobs[name], data, images) for name in (str(row.control), row.name))
    return Inspection(
        seed=seed,
        data=data,
        names=[name for name, kept in zip(files, there.tolist(), strict=True) if kept],
        images=images,
        target=target[there],
        control=control,
        chosen=chosen,
        units=_units(jobs[row.name], data, chosen.network, images[:_FIRING_IMAGES]),
    )


def _answers(name: str, job: Job, data: Any, images: Tensor) -> Answers:
    if job.keep is None or not job.keep.is_file():
        raise ValueError(f"there is no checkpoint of {name!r}" + (f", {job.keep}" if job.keep else ""))
    network = load(job.keep, job, job.network, data).eval()
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in images.split(256)])
    if not bool(logits.isfinite().all()):
        raise ValueError(f"the network of {name!r} gives no finite answers")
    return Answers(name, network, logits)


def _units(job: Job, data: Any, trained: nn.Module, images: Tensor) -> Units:
    """None for a network without units."""
    after = _weights(trained)
    if not after:
        return Units({}, {})
    start = None if job.start is None else load(job.start, job, job.basic, data)
    untrained = build(job, data, start)[0].eval()
    before = _weights(untrained)
    with torch.inference_mode():
        rates = [firing_rates(network, images) for network in (untrained, trained)]
    return Units(
        {name: (rates[0][name], rate) for name, rate in rates[1].items()},
        {name: (before[name], values) for name, values in after.items()},
    )


def _weights(network: nn.Module) -> dict[str, list[float]]:
    return {
        name: (unit.collision_weight * math.sqrt(unit.fan_in)).tolist()
        for name, unit in network.named_modules()
        if isinstance(unit, IC_LAYERS)
    }
