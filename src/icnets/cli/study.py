"""``icnets study``: runs what is missing of a study, and keeps each finished run as a line of its file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import nn

from icnets.cli.parser import parse
from icnets.compare.datasets import make_data
from icnets.compare.grid import run_grid, showing, worker_count
from icnets.compare.runs import Job, Run, build, distillation
from icnets.compare.study import lines
from icnets.compare.study.planned_runs import Planned, plan, without_places
from icnets.compare.study.settings import Study
from icnets.distill.loss import Teacher
from icnets.profile.machine import machine, require_accelerator, versions
from icnets.profile.measure import Latency, Taught, count_macs, count_parameters, measure_latency

__all__ = ["main", "run_study"]

SCHEMA = 1
_COST_SECONDS = 0.05  # at least, for each measurement of a step


def _parse(argv: Sequence[str]) -> Study:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="icnets study", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a study, such as recipes/studies/smoke.yaml")
    parser.add_class_arguments(Study, sub_configs=True)
    args = parse(parser, argv)
    return Study(**{f.name: args[f.name] for f in fields(Study)})


def run_study(study: Study) -> list[lines.Line]:
    """Trains what the study's file lacks; returns the file's lines, which are then in the order of the study.

    Raises:
        ValueError: data, a network or a setting that can't be used, before anything is trained; lines of another study.
    """
    planned = plan(study)
    require_accelerator(study.accelerator)
    first = planned[0].job
    data = make_data(first.data, first.seed, first.cache)
    networks = _first_jobs(study, planned)
    for each in planned:
        distillation(each.job.wld, each.job.training)
    for job in networks.values():
        build(job, data)
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / "checkpoints").mkdir(exist_ok=True)
    study.file.parent.mkdir(parents=True, exist_ok=True)
    with lines.locked(study.folder / "lock"):
        known, old_costs = _known(study, planned)
        header = _header(study, data)
        taught = {p.labels.network for p in planned if p.job.wld is not None}
        costs = _costs(study, networks, taught, data, old_costs)
        _save(study, header, costs, known, planned)
        _train(study, planned, known)
        return _save(study, header, costs, known, planned)


def _first_jobs(study: Study, planned: Sequence[Planned]) -> dict[str, Job]:
    """One job from scratch for each network that occurs, in the order of the study."""
    found: dict[str, Job] = {}
    for network in study.networks:
        jobs = [p.job for p in planned if p.labels.network == network.name]
        if jobs:
            found[network.name] = min(jobs, key=lambda job: job.start is not None)
    return found


def _known(study: Study, planned: Sequence[Planned]) -> tuple[dict[str, lines.Line], dict[str, lines.Line]]:
    """What the file has already: runs by id, and networks by name."""
    ids = {p.id for p in planned}
    found = lines.read(study.file)
    runs = {line["id"]: line for line in found if line["kind"] == "run"}
    if (foreign := sorted(runs.keys() - ids)) and not study.prune:
        line = runs[foreign[0]]
        raise ValueError(
            f"{len(foreign)} of {len(runs)} runs in {study.file} are none of this study as it is now, e.g. "
            f"{line['network']!r} by {line['method']!r}, seed {line['seed']}; give another --lines, or --prune true to "
            "remove them"
        )
    networks = {line["name"]: line for line in found if line["kind"] == "network"}
    return {key: line for key, line in runs.items() if key in ids}, networks


def _header(study: Study, data: Any) -> lines.Line:
    return {
        "kind": "study",
        "schema": SCHEMA,
        "name": study.name,
        "data": without_places(study.data),
        "classes": data.num_classes,
        "sizes": {split: data.size(split) for split in ("train", "val", "test")},
        "folds": getattr(data, "folds", None),
        "basic": study.networks[0].name,
        "networks": [asdict(network) for network in study.networks],
        "methods": [asdict(method) for method in study.methods],
        "recipes": [asdict(recipe) for recipe in study.recipes],
        "threads": study.threads,
        "versions": versions("torch", "timm", "lightning", "numpy"),
        "machine": machine(),
    }


def _costs(
    study: Study, networks: dict[str, Job], taught: set[str], data: Any, known: dict[str, lines.Line]
) -> list[lines.Line]:
    """Parameters, MACs and the time of a training step of each network; measured once, beside the basic network.

    For those that are ``taught`` by a teacher, that of a step with it as well.
    """
    names = list(networks)
    own = {name: _description(networks[name]) for name in names}
    old = {name for name in names if known.get(name, {}).get("network") == own[name]}
    old -= {name for name in taught if "step_taught" not in known.get(name, {})}
    missing = [name for name in names if name not in old]
    measured: dict[str, lines.Line] = {}
    if missing:
        batch = next(iter(data.train_dataloader()))[0]
        first = study.networks[0].name
        basic = networks.get(first) or next(iter(networks.values()))
        models = {name: build(networks.get(name, basic), data)[0] for name in dict.fromkeys([first, *missing])}
        steps: dict[str, nn.Module] = dict(models)
        steps |= {
            _taught(name): Taught(models[name], Teacher(build(basic, data)[0])) for name in missing if name in taught
        }
        print(f"measuring a training step of {len(missing)} networks", flush=True)
        found = measure_latency(
            steps, batch, rounds=study.cost_rounds, training=True, threads=study.threads, min_seconds=_COST_SECONDS
        )
        for name in missing:
            parameters, macs = count_parameters(models[name]), count_macs(models[name], batch[:1])
            measured[name] = {
                "kind": "network",
                "name": name,
                "network": own[name],
                "parameters": parameters.total,
                "parameters_ic": parameters.ic,
                "macs": macs.total,
                "macs_ic": macs.ic,
                "step": _rounded(found[name]),
                **({"step_taught": _rounded(found[_taught(name)])} if name in taught else {}),
            }
    return [measured.get(name) or known[name] for name in names]


def _taught(name: str) -> str:
    return f"{name}, taught"


def _rounded(step: Latency) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(step).items()}


def _description(job: Job) -> dict[str, Any]:
    return {**asdict(job.network), "ic": None if job.ic is None else job.ic.to_dict() | {"warm_start": "none"}}


def _save(
    study: Study,
    header: lines.Line,
    costs: Sequence[lines.Line],
    known: dict[str, lines.Line],
    planned: Sequence[Planned],
) -> list[lines.Line]:
    whole = [header, *costs, *(known[p.id] for p in planned if p.id in known)]
    lines.rewrite(study.file, whole)
    return whole


def _train(study: Study, planned: Sequence[Planned], known: dict[str, lines.Line]) -> None:
    missing = _missing(planned, known)
    jobs = [p.job for p in missing]
    by_job = {id(p.job): p for p in missing}
    workers = worker_count(study.workers, len(jobs), study.accelerator)
    new = sum(p.id not in known for p in missing)
    again = f", {len(missing) - new} again for their checkpoints" if len(missing) > new else ""
    print(f"{study.name}: {len(planned)} runs, {new} to do{again}; lines go to {study.file}", flush=True)
    if not jobs:
        return
    with showing(len(jobs), sum(job.training.epochs for job in jobs)) as progress:
        for job, run in run_grid(jobs, workers, progress):
            done = by_job[id(job)]
            if done.id not in known:
                known[done.id] = _line(done, run)
                lines.append(study.file, known[done.id])


def _missing(planned: Sequence[Planned], known: dict[str, lines.Line]) -> list[Planned]:
    """What isn't done; and what is, but without the checkpoint that something to be done needs."""
    missing = [p for p in planned if p.id not in known]
    needed = {path for p in missing for path in p.job.needs}
    lost = [p for p in planned if p.id in known and p.job.keep in needed and not Path(str(p.job.keep)).is_file()]
    return [*lost, *missing]


def _line(planned: Planned, run: Run) -> lines.Line:
    optional = {"start_error": run.start_error, "agreement": run.agreement}
    return {
        "kind": "run",
        "id": planned.id,
        **asdict(planned.labels),
        "epochs": planned.job.training.epochs,
        "test": {name: round(value, 6) for name, value in run.test.items()},
        **{name: round(value, 6) for name, value in optional.items() if value is not None},
        "val_error": [epoch.val_error for epoch in run.history],
        "train_loss": [round(epoch.train_loss, 5) for epoch in run.history],
        "seconds": round(run.seconds, 3),
        "epoch_seconds": [round(epoch.seconds, 3) for epoch in run.history],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    from icnets.compare.study.study_tables import overview
    from icnets.support.tables import show

    start = time.monotonic()
    study = _parse(sys.argv[1:] if argv is None else list(argv))
    found = run_study(study)
    for table in overview(found):
        print()
        show(table)
    print(f"\n{study.file}    every run, one line each\nAll in {time.monotonic() - start:.0f} s.")
    return 0
