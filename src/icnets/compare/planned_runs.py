"""From the settings to the runs: each with its place in the table, the job that trains it, and an id."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from icnets.compare.runs import Job
from icnets.compare.settings import Method, Network, Settings

_PLACES = ("root", "fonts", "download", "workers")


@dataclass(frozen=True)
class Cell:
    """A cell of the grid, by names. Without a grid, network and method are both the name of the row."""

    network: str
    method: str
    recipe: str = "plain"
    budget: float = 1.0

    def __str__(self) -> str:
        return f"{self.network} · {self.method} · {self.recipe} · {100 * self.budget:g} %"


@dataclass(frozen=True)
class Planned:
    """A run to be done.

    Args:
        cell: what is trained, and how.
        seed: of the run.
        ids: the id, a digest of everything that the result depends on, apart from the software; then those that the
            same run had by earlier formats of its settings.
        job: trains it.
    """

    cell: Cell
    seed: int
    ids: tuple[str, ...]
    job: Job

    @property
    def id(self) -> str:
        return self.ids[0]


@dataclass(frozen=True)
class Entry:
    """A row of the table to be made: names of the row, of the basic network beside it, and of its control.

    ``group`` is the unit with its way of training; ``plotted``: whether its curve is drawn.
    """

    name: str
    cell: Cell
    start: str
    group: str
    basic: str
    control: str
    plotted: bool


def plan(settings: Settings, seen: dict[str, Any] | None = None) -> list[Planned]:
    """Every run once, in the order of the settings; each run behind those that it needs.

    Basic networks that are needed as teachers or starts are runs like any other, also where no part names them.

    Args:
        settings: of the comparison.
        seen: what was found in the data, such as the numbers of images: without a grid it is part of the id.
    """
    done: dict[tuple[Cell, int], Planned] = {}
    for cell, seed in _wanted(settings):
        _add(settings, cell, seed, done, seen)
    needed = {path for planned in done.values() for path in planned.job.needs}

    def kept(planned: Planned) -> bool:
        always = not settings.parts and (settings.save_checkpoints or planned.cell == _first(settings))
        return always or planned.job.keep in needed

    return [p if kept(p) else replace(p, job=replace(p.job, keep=None)) for p in done.values()]


def without_places(data: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a data set without those that say where it lies and who reads it."""
    return {name: value for name, value in data.items() if name not in _PLACES}


def entries(settings: Settings, planned: Sequence[Planned]) -> list[Entry]:
    """The rows of the table: the basic network first, then in the order in which they are planned."""
    first = _first(settings)
    basics_first = sorted(planned, key=lambda p: (p.cell.network, p.cell.method) != (first.network, first.method))
    jobs = {p.cell: p.job for p in basics_first}
    several = [len({getattr(cell, axis) for cell in jobs}) > 1 for axis in ("recipe", "budget")]

    def name(cell: Cell) -> str:
        if not settings.parts:
            return cell.method
        words = [cell.network, cell.method if cell.method != first.method else ""]
        words += [cell.recipe if several[0] else "", f"{100 * cell.budget:g} %" if several[1] else ""]
        return ", ".join(filter(None, words))

    found = []
    for cell, job in jobs.items():
        network, method = _methods_of(settings, cell)
        basic = replace(cell, network=first.network, method=first.method)
        control = replace(cell, network=first.network) if settings.parts else basic
        unit = network.network or ("IC" if job.ic else network.name if settings.parts else "basic")
        found.append(
            Entry(
                name=name(cell),
                cell=cell,
                start=method.start,
                group=f"{unit}{' + WLD' if job.wld else ''}",
                basic=name(basic),
                control=method.control or name(control if control in jobs and control != cell else basic),
                plotted=cell.recipe == planned[0].cell.recipe and cell.budget == 1,
            )
        )
    return found


def _first(settings: Settings) -> Cell:
    """The basic network from scratch."""
    method = settings.methods[0].name
    return Cell(settings.networks[0].name if settings.parts else method, method)


def _wanted(settings: Settings) -> Iterator[tuple[Cell, int]]:
    for part in settings.parts:
        for recipe, budget, network, method, seed in product(
            part.recipes, part.budgets, part.networks, part.methods, part.seeds
        ):
            yield Cell(network, method, recipe, budget), seed
    if not settings.parts:
        yield from product([_first(settings)], settings.seeds)
        for seed, method_ in product(settings.seeds, settings.methods):
            yield Cell(method_.name, method_.name), seed


def _methods_of(settings: Settings, cell: Cell) -> tuple[Method, Method]:
    """What says the network, and what says how it is trained; without a grid both are one."""
    methods = {method.name: method for method in settings.methods}
    networks = {network.name: network for network in settings.networks} if settings.parts else methods
    return networks[cell.network], methods[cell.method]


def _add(
    settings: Settings,
    cell: Cell,
    seed: int,
    done: dict[tuple[Cell, int], Planned],
    seen: dict[str, Any] | None,
) -> Planned:
    if (cell, seed) in done:
        return done[cell, seed]
    _, method = _methods_of(settings, cell)
    budgets = {"start": 1.0} if method.start != "scratch" else {}
    if method.wld:
        budgets["teacher"] = method.teacher
    first = _first(settings)
    needs = {
        role: _add(settings, replace(first, recipe=cell.recipe, budget=budget), seed, done, seen)
        for role, budget in budgets.items()
    }
    job, data = _job(settings, cell, seed, {role: planned.job.keep for role, planned in needs.items()})
    own = {
        "labels": {**asdict(cell), "seed": seed},
        "data": without_places(data) if settings.parts else {**data, "workers": None, "seen": seen},
        "job": {k: v for k, v in asdict(job).items() if k in ("network", "training", "basic", "ic", "wld")},
        "needs": {role: planned.id for role, planned in needs.items()},
    }
    ids = _ids(own)
    words = "".join(c if c.isalnum() else " " for c in cell.method.lower().replace("+", " plus ")).split()
    name = ids[0] if settings.parts else f"{'-'.join(words)}-seed{seed}"
    job = replace(job, keep=settings.out / "checkpoints" / f"{name}.safetensors")
    done[cell, seed] = Planned(cell, seed, ids, job)
    return done[cell, seed]


def _ids(own: dict[str, Any]) -> tuple[str, ...]:
    versions = [own]
    ic = own["job"]["ic"]
    if ic is not None and (ic["warm_start"] != "calibrate" or ic["max_change"] is None):
        # Version 1 of ICConfig had no max_change, and where nothing is calibrated, it changes nothing.
        old = {k: v for k, v in ic.items() if k != "max_change"} | {"version": 1}
        versions.append({**own, "job": {**own["job"], "ic": old}})
    texts = [json.dumps(version, sort_keys=True, default=str) for version in versions]
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)


def _job(settings: Settings, cell: Cell, seed: int, checkpoints: dict[str, Path | None]) -> tuple[Job, dict[str, Any]]:
    """The job, and the data's arguments as the settings have them."""
    own, method = _methods_of(settings, cell)
    recipe = next((r for r in settings.recipes if r.name == cell.recipe), None)
    training = settings.training.of(method.start) if recipe is None else recipe.training
    training = replace(
        training,
        epochs=max(1, round(cell.budget * training.epochs)),
        lr=training.lr if method.lr is None else method.lr,
    )
    data = {**settings.data, **({} if recipe is None else recipe.data)}
    network = _network(settings, own)
    if method.start != "scratch" and network != settings.network:
        raise ValueError(f"{own.name!r} is another network than {settings.network.name!r} and can't start from it")
    ic = own.ic
    if ic is not None and method.start in ("gain", "calibrate"):
        ic = replace(ic, warm_start=method.start, max_change=None)
    job = Job(
        method=str(cell) if settings.parts else cell.method,
        seed=seed,
        data=data,
        network=network,
        training=training,
        basic=settings.network,
        ic=ic,
        wld=method.distillation(settings.wld),
        start=checkpoints.get("start"),
        teacher=checkpoints.get("teacher"),
        threads=settings.threads,
        accelerator=settings.accelerator,
        cache=settings.out / "data",
        imports=settings.imports,
    )
    return job, data


def _network(settings: Settings, own: Method) -> Network:
    """The network before its conversion, with its options resolved."""
    basic = settings.network
    same = own.network in (None, basic.name)
    options = own.options
    if settings.parts:
        options = {**(basic.options if same else {}), **(options or {})}
    elif options is None:
        options = basic.options
    if not same:
        return Network(str(own.network), options, own.before_norm)
    return Network(basic.name, options, own.before_norm or basic.before_norm)
