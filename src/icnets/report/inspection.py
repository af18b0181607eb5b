"""A look at two trained networks of a comparison: what they answer to the test images, and what the units do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from icnets import checkpoint
from icnets.compare import networks
from icnets.compare.comparison import jobs_of
from icnets.compare.comparison_table import Row
from icnets.compare.datasets import make_data
from icnets.compare.runs import Job, build
from icnets.profile.firing import firing_rates
from icnets.report.records import Comparison
from icnets.support.text import differing, first_line
from icnets.unit.layers import IC_LAYERS

__all__ = ["Answers", "Inspection", "Units", "chosen_method", "inspect"]

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


def chosen_method(comparison: Comparison, name: str | None) -> Row | None:
    """The row of ``name``; else that of the IC network with the least mean test error, None without any.

    Raises:
        ValueError: there is no such method, or it is the basic network.
    """
    rows = {row.name: row for row in comparison.rows}
    if name is not None:
        if rows.get(name) is None or rows[name].control is None:
            others = [row.name for row in comparison.rows if row.control is not None]
            raise ValueError(f"--method is {name!r}; it must be one of {', '.join(others)}")
        return rows[name]
    units = [row for row in comparison.rows if row.cost.parameters.ic]
    return min(units, key=lambda row: row.error.mean, default=None)


def inspect(comparison: Comparison, row: Row) -> Inspection:
    """The network of ``row`` and its control's, for the first seed, on that seed's test images.

    Raises:
        ValueError: the images, or the checkpoints of the two, aren't there any more, or don't fit.
    """
    seed = comparison.settings.seeds[0]
    record = comparison.record["data"]
    data = make_data(record["arguments"], seed)
    if data.size("test") != record["images"]["test"]:
        raise ValueError(f"the test images were {record['images']['test']} and are {data.size('test')} now")
    if list(data.class_names) != record["classes"]:
        then, now = differing(record["classes"], data.class_names)
        raise ValueError(f"the networks were trained on {then}, and the images are of {now} now")
    jobs = {job.method: job for job in jobs_of(comparison.settings, record["arguments"], seed)}
    batches = list(data.test_dataloader())
    images, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    there = target >= 0
    names = data.names("test")
    assert row.control is not None
    pair = [_answers(jobs[name], data, images[there]) for name in (row.control, row.name)]
    return Inspection(
        seed=seed,
        data=data,
        names=[name for name, kept in zip(names, there.tolist(), strict=True) if kept],
        images=images[there],
        target=target[there],
        control=pair[0],
        chosen=pair[1],
        units=_units(jobs[row.name], data, pair[1].network, images[there][:_FIRING_IMAGES]),
    )


def _answers(job: Job, data: Any, images: Tensor) -> Answers:
    if job.keep is None or not job.keep.is_file():
        raise ValueError(f"there is no checkpoint {job.keep}")
    network = _load(job, data)
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in images.split(256)])
    if not bool(logits.isfinite().all()):
        raise ValueError(f"the network of {job.method!r} gives no finite answers")
    return Answers(job.method, network, logits)


def _load(job: Job, data: Any) -> nn.Module:
    basic = networks.create(job.network, num_classes=data.num_classes, in_chans=data.in_chans)
    assert job.keep is not None
    try:
        return checkpoint.load(job.keep, basic).eval()
    except checkpoint.CheckpointError as error:
        raise ValueError(first_line(error)) from error


def _units(job: Job, data: Any, trained: nn.Module, images: Tensor) -> Units:
    """Nothing for a network without units."""
    after = _weights(trained)
    if not after:
        return Units({}, {})
    start = None
    if job.start is not None:
        start = _load(replace(job, keep=job.start, network=job.basic, ic=None), data)
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
