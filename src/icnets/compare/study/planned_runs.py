"""From a study to its runs: each with the labels it has in the tables, the job that trains it, and an id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from icnets.compare.runs import Job
from icnets.compare.study.settings import Recipe, Study, StudyMethod, StudyNetwork, by_name

__all__ = ["Labels", "Planned", "plan", "without_places"]

_PLACES = ("root", "fonts", "download", "workers")


@dataclass(frozen=True)
class Labels:
    """What a run is called: the cell of the grid, and the seed."""

    network: str
    method: str
    recipe: str
    budget: float
    seed: int

    def __str__(self) -> str:
        return f"{self.network} · {self.method} · {self.recipe} · {100 * self.budget:g} %"


@dataclass(frozen=True)
class Planned:
    """A run to be done. ``id`` is a digest of everything that its result depends on, apart from the software."""

    labels: Labels
    id: str
    job: Job


def plan(study: Study) -> list[Planned]:
    """Every run of the study once, in the order of its parts; each run behind those that it needs.

    Basic networks that are needed as teachers or starts are runs like any other, also where no part names them.
    """
    done: dict[Labels, Planned] = {}
    needed: set[Path] = set()
    for labels in _cells(study):
        _add(study, labels, done)
    for planned in done.values():
        needed |= planned.job.needs
    return [p if p.job.keep in needed else replace(p, job=replace(p.job, keep=None)) for p in done.values()]


def without_places(data: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a data set without those that say where it lies and who reads it."""
    return {name: value for name, value in data.items() if name not in _PLACES}


def _cells(study: Study) -> Iterator[Labels]:
    for part in study.parts:
        for recipe, budget, network, method, seed in product(
            part.recipes, part.budgets, part.networks, part.methods, part.seeds
        ):
            yield Labels(network, method, recipe, budget, seed)


def _add(study: Study, labels: Labels, done: dict[Labels, Planned]) -> Planned:
    if labels in done:
        return done[labels]
    network: StudyNetwork = by_name(study.networks, labels.network)
    scratch = StudyMethod("scratch")
    method: StudyMethod = next((m for m in study.methods if m.name == labels.method), scratch)
    recipe: Recipe = by_name(study.recipes, labels.recipe)
    budgets = {"start": 1.0} if method.start != "scratch" else {}
    if method.wld is not None:
        budgets["teacher"] = method.teacher
    basic = {
        role: _add(study, Labels(study.networks[0].name, _plain_method(study), labels.recipe, b, labels.seed), done)
        for role, b in budgets.items()
    }
    job = _job(study, labels, network, method, recipe, {role: p.job.keep for role, p in basic.items()})
    own = {
        "labels": asdict(labels),
        "data": without_places(job.data),
        "job": {k: v for k, v in asdict(job).items() if k in ("network", "training", "basic", "ic", "wld")},
        "needs": {role: p.id for role, p in basic.items()},
    }
    digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]
    keep = study.folder / "checkpoints" / f"{digest}.safetensors"
    done[labels] = Planned(labels, digest, replace(job, keep=keep))
    return done[labels]


def _plain_method(study: Study) -> str:
    """The name of training from scratch with nothing added."""
    plain = (m.name for m in study.methods if m == StudyMethod(m.name))
    return next(plain, "scratch")


def _job(
    study: Study,
    labels: Labels,
    network: StudyNetwork,
    method: StudyMethod,
    recipe: Recipe,
    checkpoints: dict[str, Path | None],
) -> Job:
    training = replace(recipe.training, epochs=max(1, round(labels.budget * recipe.training.epochs)))
    if method.lr is not None:
        training = replace(training, lr=method.lr)
    own, basic = study.network(network), study.network(study.networks[0])
    if method.start != "scratch" and own != basic:
        raise ValueError(f"{network.name!r} is another network than {study.networks[0].name!r} and can't start from it")
    ic = network.ic
    if ic is not None and method.start != "scratch":
        # In a study a calibrated network has the paper's form, so that it differs from "gain" by that.
        ic = replace(ic, warm_start=method.start, max_change=None)
    data: dict[str, Any] = {**study.data, **recipe.data}
    return Job(
        method=str(labels),
        seed=labels.seed,
        data=data,
        network=own,
        training=training,
        basic=basic,
        ic=ic,
        wld=method.wld,
        start=checkpoints.get("start"),
        teacher=checkpoints.get("teacher"),
        threads=study.threads,
        accelerator=study.accelerator,
        cache=study.folder / "data",
    )
