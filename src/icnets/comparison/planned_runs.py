"""From the settings to the runs: each with its place in the table, an id, and what a process needs to train it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from timm.models import is_model

from icnets.comparison.settings import Method, Network, Settings, Training, WeakDistillation
from icnets.convert.config import ICConfig

_PLACES = ("root", "fonts", "download", "workers")
# Settings that came later, with their defaults: where they hold, a run has the id that it had before.
_LATER: dict[str, Any] = {"weights": None, "clip": None, "new_lr": 1.0, "channels_last": False}
_LATER |= {"max_slowdown": None, "engine": "eager", "only": None}


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
class Job:
    """A run to be done: one network trained by one method with one seed.

    Args:
        cell: what is trained, and how.
        seed: of the split, the initial weights and the order of the images.
        settings: of the comparison.
        data: arguments of :func:`icnets.comparison.runs.make_data`, without the seed.
        network: the network, before any conversion.
        training: how it is trained.
        ic: how the network is converted; None: it isn't.
        wld: weak logit distillation; goes with ``teacher``.
        start: checkpoint of the trained basic network to start from; None: from scratch.
        teacher: checkpoint of the trained basic network that teaches.
        keep: where the trained network is saved; None: nowhere.
        ids: the id, a digest of everything that the result depends on, apart from the software; then those that the
            same run had by earlier formats of its settings.
    """

    cell: Cell
    seed: int
    settings: Settings
    data: dict[str, Any]
    network: Network
    training: Training
    ic: ICConfig | None
    wld: WeakDistillation | None
    start: Path | None
    teacher: Path | None
    keep: Path | None
    ids: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.ids[0]

    @property
    def method(self) -> str:
        """What the run is called."""
        return str(self.cell) if self.settings.parts else self.cell.method

    @property
    def needs(self) -> set[Path]:
        """Checkpoints that must be there before the job begins."""
        return {path for path in (self.start, self.teacher) if path is not None}


@dataclass(frozen=True)
class Entry:
    """A row of the table to be made: names of the row, of the basic network beside it, and of its control.

    ``plotted``: whether its curve is drawn.
    """

    name: str
    cell: Cell
    start: str
    basic: str
    control: str
    plotted: bool


def plan(settings: Settings, seen: dict[str, Any] | None = None) -> list[Job]:
    """Every run once, in the order of the settings; each run behind those that it needs.

    Basic networks that are needed as teachers or starts are runs like any other, also where no part names them.

    Args:
        settings: of the comparison.
        seen: what was found in the data, such as the numbers of images: without a grid it is part of the id.
    """
    first, done = _first(settings), dict[tuple[Cell, int], Job]()

    def add(cell: Cell, seed: int) -> Job:
        if (cell, seed) not in done:
            _, method = _methods_of(settings, cell)
            budgets = {"start": 1.0} if method.start != "scratch" else {}
            if method.wld:
                budgets["teacher"] = method.teacher
            needs = {role: add(replace(first, recipe=cell.recipe, budget=b), seed) for role, b in budgets.items()}
            done[cell, seed] = _job(settings, cell, seed, needs, seen)
        return done[cell, seed]

    for cell, seed in _wanted(settings):
        add(cell, seed)
    needed = {path for job in done.values() for path in job.needs}
    return [replace(job, keep=None) if settings.parts and job.keep not in needed else job for job in done.values()]


def without_places(data: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a data set without those that say where it lies and who reads it."""
    return {name: value for name, value in data.items() if name not in _PLACES}


def plain(part: Any) -> dict[str, Any]:
    """A dataclass of the settings as a dictionary, without later settings that have their default.

    Example:
        >>> plain(Network("resnet50"))
        {'name': 'resnet50', 'options': {}, 'before_norm': None}
    """
    return {name: v for name, v in asdict(part).items() if name not in _LATER or v != _LATER[name]}


def digest(what: Any) -> str:
    """Stands for ``what``, which JSON can hold or ``str`` can say."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def entries(settings: Settings, jobs: Sequence[Job]) -> list[Entry]:
    """The rows of the table: the basic network first, then in the order in which they are planned."""
    first = _first(settings)
    cells = dict.fromkeys(job.cell for job in jobs)
    several = [len({getattr(cell, axis) for cell in cells}) > 1 for axis in ("recipe", "budget")]

    def name(cell: Cell) -> str:
        if not settings.parts:
            return cell.method
        words = [cell.network, cell.method if cell.method != first.method else ""]
        words += [cell.recipe * several[0], f"{100 * cell.budget:g} %" * several[1]]
        return ", ".join(filter(None, words))

    found = []
    for cell in sorted(cells, key=lambda cell: (cell.network, cell.method) != (first.network, first.method)):
        _, method = _methods_of(settings, cell)
        basic = replace(cell, network=first.network, method=first.method)
        control = replace(cell, network=first.network) if settings.parts else basic
        beaten = method.control or name(control if control in cells and control != cell else basic)
        plotted = cell.recipe == jobs[0].cell.recipe and cell.budget == 1
        found.append(Entry(name(cell), cell, method.start, name(basic), beaten, plotted))
    return found


def _first(settings: Settings) -> Cell:
    """The basic network from scratch."""
    return Cell((settings.networks or settings.methods)[0].name, settings.methods[0].name)


def _wanted(settings: Settings) -> list[tuple[Cell, int]]:
    if not settings.parts:
        return [(Cell(row.name, row.name), seed) for seed, row in product(settings.seeds, settings.methods)]
    axes = ("recipes", "budgets", "networks", "methods", "seeds")
    found = (place for part in settings.parts for place in product(*(getattr(part, axis) for axis in axes)))
    return [(Cell(network, method, recipe, budget), seed) for recipe, budget, network, method, seed in found]


def _methods_of(settings: Settings, cell: Cell) -> tuple[Method, Method]:
    """What says the network, and what says how it is trained; without a grid both are one."""
    networks = {network.name: network for network in settings.networks or settings.methods}
    return networks[cell.network], {method.name: method for method in settings.methods}[cell.method]


def _job(settings: Settings, cell: Cell, seed: int, needs: Mapping[str, Job], seen: dict[str, Any] | None) -> Job:
    own, method = _methods_of(settings, cell)
    recipe = next((r for r in settings.recipes if r.name == cell.recipe), None)
    training = settings.training.of(method.start) if recipe is None else recipe.training
    epochs, lr = max(1, round(cell.budget * training.epochs)), training.lr if method.lr is None else method.lr
    training = replace(training, epochs=epochs, lr=lr)
    data = settings.data if recipe is None else {**settings.data, **recipe.data}
    network = network_of(settings, own)
    if method.start != "scratch" and network != settings.network:
        raise ValueError(f"{own.name!r} is another network than {settings.network.name!r} and can't start from it")
    ic, wld = own.ic, method.distillation(settings.wld)
    untrained = method.start == "scratch" and network.weights is None and network.name not in settings.imports
    if untrained and is_model(network.name) and ic is not None and ic.warm_start != "none":  # a report has no imports
        what = f"{own.name!r} has warm_start: {ic.warm_start} but starts from scratch"
        raise ValueError(f"{what}; say start: basic, or give the network weights")
    if ic is not None and method.start in ("gain", "calibrate"):
        ic = replace(ic, warm_start=method.start, max_change=None)
    parts: dict[str, Any] = {"network": network, "training": training, "basic": settings.network, "ic": ic, "wld": wld}
    ids = _ids(
        {
            "labels": {**asdict(cell), "seed": seed},
            "data": without_places(data) if settings.parts else {**data, "workers": None, "seen": seen},
            "job": {key: None if part is None else plain(part) for key, part in parts.items()},
            "needs": {role: job.id for role, job in needs.items()},
        }
    )
    words = re.findall(r"[^\W_]+", cell.method.lower().replace("+", " plus "))
    name = ids[0] if settings.parts else f"{'-'.join(words)}-seed{seed}"
    start, teacher = (needs[role].keep if role in needs else None for role in ("start", "teacher"))
    keep = settings.out / "checkpoints" / f"{name}.safetensors"
    return Job(cell, seed, settings, data, network, training, ic, wld, start, teacher, keep, ids)


def _ids(own: dict[str, Any]) -> tuple[str, ...]:
    versions = [own]
    ic = own["job"]["ic"]
    if ic is not None and (ic["warm_start"] != "calibrate" or ic["max_change"] is None):
        # Version 1 of ICConfig had no max_change, and where nothing is calibrated, it changes nothing.
        old = {k: v for k, v in ic.items() if k != "max_change"} | {"version": 1}
        versions.append({**own, "job": {**own["job"], "ic": old}})
    return tuple(map(digest, versions))


def network_of(settings: Settings, own: Method) -> Network:
    """The network before its conversion, with its options resolved."""
    basic = settings.network
    same = own.network in (None, basic.name)
    options = basic.options if own.options is None else own.options
    if settings.parts:
        options = {**(basic.options if same else {}), **(own.options or {})}
    before_norm, weights = own.before_norm or (basic.before_norm if same else None), basic.weights if same else None
    return Network(own.network or basic.name, options, before_norm, weights)
