"""The engine of ``icnets compare``: runs what is missing, keeps each run as a line, and writes the evidence."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from icnets.compare import lines
from icnets.compare.comparison_table import Cost, Row, comparison_table, curves, rows, verdicts
from icnets.compare.data_kinds import make_data
from icnets.compare.grid import run_grid, worker_count
from icnets.compare.planned_runs import Planned, entries, plan, without_places
from icnets.compare.plots import plot_curves
from icnets.compare.runs import Epoch, Job, Run, build, distillation
from icnets.compare.settings import Settings
from icnets.distill.loss import Teacher
from icnets.profile.machine import machine, require_accelerator, versions
from icnets.profile.measure import Count, Latency, Taught, count_macs, count_parameters, measure_latency
from icnets.support.files import atomic_write
from icnets.support.tables import Table

SCHEMA = 1  # of the lines and of results.json
_STEP_SECONDS = 0.05  # at least, for each measurement of a training step


@dataclass(frozen=True)
class Compared:
    """What a comparison found: the rows, the table that shows them, and a sentence for each IC network."""

    rows: list[Row]
    table: Table
    verdicts: list[str]


def compare(settings: Settings, command: str = "") -> Compared:
    """Trains what the file of lines lacks and writes the evidence to ``settings.out``.

    Writes lines.jsonl, results.json, results.md, curves.png and checkpoints/. What is killed goes on when it is called
    again with the same settings.

    Args:
        settings: of the comparison.
        command: what was typed, for the record.

    Raises:
        ValueError: data, a network or a setting that can't be used, before anything is trained; lines of another
            comparison.
    """
    start = time.monotonic()
    require_accelerator(settings.accelerator)
    planned = plan(settings)
    for each in planned:
        distillation(each.job.wld, each.job.training)
    first = planned[0].job
    data = make_data(settings.data, first.seed, cache=first.cache, imports=settings.imports)
    sizes = {split: data.size(split) for split in ("train", "val", "test")}
    planned = plan(settings, {"sizes": sizes, "classes": list(data.class_names)})
    networks = _networks(settings, planned)
    for job in networks.values():
        build(job, data)
    (settings.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    with lines.locked(settings.out / "lock"):
        known, measured = _known(settings, planned)
        header = _header(settings, data, sizes)
        costs = _measured(settings, planned, networks, data, measured)
        _save(settings, header, costs, known, planned)
        workers = _train(settings, planned, known)
        _save(settings, header, costs, known, planned)
    rest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": round(time.monotonic() - start, 1),
        "data": {
            "arguments": settings.data,
            "classes": list(data.class_names),
            "images": sizes,
            **({"folds": header["folds"]} if header["folds"] else {}),
        },
        "versions": versions("torch", "timm", "lightning", "torchvision", "numpy", "scikit-learn"),
        "machine": {**machine(), "workers": workers, "threads_per_worker": settings.threads},
    }
    return _write_evidence(settings, planned, known, costs, rest)


def _networks(settings: Settings, planned: Sequence[Planned]) -> dict[str, Job]:
    """One job for each network that occurs, from scratch where there is one, in the order of the settings."""
    found = {}
    for network in settings.networks or settings.methods:
        jobs = [p.job for p in planned if p.cell.network == network.name]
        if jobs:
            found[network.name] = min(jobs, key=lambda job: job.start is not None)
    return found


def _known(settings: Settings, planned: Sequence[Planned]) -> tuple[dict[str, lines.Line], dict[str, lines.Line]]:
    """What the file has already: runs by their present id, and networks by name."""
    present = {old: p.id for p in planned for old in p.ids}
    found = lines.read(settings.file)
    runs = [line for line in found if line["kind"] == "run"]
    foreign = [line for line in runs if line["id"] not in present]
    if foreign and not settings.prune:
        line = foreign[0]
        raise ValueError(
            f"{len(foreign)} of {len(runs)} runs in {settings.file} are none of this comparison as it is now, e.g. "
            f"{line['network']!r} by {line['method']!r}, seed {line['seed']}; give another --out or --lines, or "
            "--prune true to remove them"
        )
    networks = {line["name"]: line for line in found if line["kind"] == "network"}
    return {present[line["id"]]: line for line in runs if line["id"] in present}, networks


def _header(settings: Settings, data: Any, sizes: dict[str, int]) -> lines.Line:
    methods = [replace(method, wld=method.distillation(settings.wld) or False) for method in settings.methods]
    return {
        "kind": "study",
        "schema": SCHEMA,
        "name": settings.name or settings.out.name,
        "data": without_places(settings.data),
        "classes": data.num_classes,
        "sizes": sizes,
        "folds": getattr(data, "folds", None),
        "basic": (settings.networks or settings.methods)[0].name,
        "networks": [asdict(network) for network in settings.networks],
        "methods": [asdict(method) for method in methods],
        "recipes": [asdict(recipe) for recipe in settings.recipes],
        "threads": settings.threads,
        "versions": versions("torch", "timm", "lightning", "numpy"),
        "machine": machine(),
    }


def _measured(
    settings: Settings,
    planned: Sequence[Planned],
    networks: dict[str, Job],
    data: Any,
    known: dict[str, lines.Line],
) -> list[lines.Line]:
    """Parameters, MACs and time of each network; measured once, beside the first.

    Of a grid that of a training step as well, and for networks that are taught, of one with its teacher.
    """
    wanted = {name: {"latency"} | ({"step"} if settings.parts else set()) for name in networks}
    for p in planned:
        if settings.parts and p.job.wld is not None:
            wanted[p.cell.network].add("step_taught")
    described = {name: _description(job) for name, job in networks.items()}
    missing = [
        name
        for name, line in ((name, known.get(name, {})) for name in networks)
        if line.get("network") != described[name] or wanted[name] - line.keys()
    ]
    if not missing:
        return [known[name] for name in networks]
    print(f"measuring {len(missing)} networks", flush=True)
    first, batch = next(iter(networks)), next(iter(data.test_dataloader()))[0]
    # Methods with the same network share one measurement.
    same = {name: next(o for o in networks if described[o] == described[name]) for name in [first, *missing]}
    models = {name: build(networks[name], data)[0] for name in dict.fromkeys(same.values())}
    sample = batch[:1].expand(settings.latency_batch, *batch.shape[1:]).contiguous()
    threads = settings.threads
    latency = measure_latency(models, sample, rounds=settings.latency_rounds, threads=threads)
    times: dict[str, dict[str, Any]] = {name: {"latency": asdict(latency[same[name]])} for name in missing}
    if settings.parts:
        batch = next(iter(data.train_dataloader()))[0]
        steps: dict[str, nn.Module] = dict(models)
        for name in [name for name in missing if "step_taught" in wanted[name]]:
            teacher = Teacher(build(networks[first], data)[0])
            steps[f"{same[name]}, taught"] = Taught(models[same[name]], teacher)
        found = measure_latency(
            steps, batch, rounds=settings.cost_rounds, training=True, threads=threads, min_seconds=_STEP_SECONDS
        )
        for name in missing:
            own = {"step": same[name], "step_taught": f"{same[name]}, taught"}
            times[name] |= {key: _rounded(found[step]) for key, step in own.items() if key in wanted[name]}
    measured = {}
    for name in missing:
        parameters, macs = count_parameters(models[same[name]]), count_macs(models[same[name]], sample[:1])
        counts = {
            "parameters": parameters.total,
            "parameters_ic": parameters.ic,
            "macs": macs.total,
            "macs_ic": macs.ic,
        }
        measured[name] = {"kind": "network", "name": name, "network": described[name], **counts, **times[name]}
    return [measured.get(name) or known[name] for name in networks]


def _rounded(step: Latency) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(step).items()}


def _description(job: Job) -> dict[str, Any]:
    return {**asdict(job.network), "ic": None if job.ic is None else job.ic.to_dict()}


def _save(
    settings: Settings,
    header: lines.Line,
    costs: Sequence[lines.Line],
    known: dict[str, lines.Line],
    planned: Sequence[Planned],
) -> None:
    lines.rewrite(settings.file, [header, *costs, *(known[p.id] for p in planned if p.id in known)])


def _train(settings: Settings, planned: Sequence[Planned], known: dict[str, lines.Line]) -> int:
    """Runs what is missing, and what others need of a lost checkpoint; returns the number of processes."""
    missing = [p for p in planned if p.id not in known]
    needed = {path for p in missing for path in p.job.needs}
    lost = [p for p in planned if p.id in known and p.job.keep in needed and not Path(str(p.job.keep)).is_file()]
    by_job = {id(p.job): p for p in [*lost, *missing]}
    workers = worker_count(settings.workers, len(by_job), settings.accelerator)
    again = f", {len(lost)} again for their checkpoints" if lost else ""
    print(f"{len(planned)} runs, {len(missing)} to do{again}, {workers} at a time; results go to {settings.out}/")
    for job, run in run_grid([p.job for p in by_job.values()], workers):
        done = by_job[id(job)]
        if done.id not in known:
            known[done.id] = _line(done, run)
            lines.append(settings.file, known[done.id])
    return workers


def _line(planned: Planned, run: Run) -> lines.Line:
    optional = {"start_error": run.start_error, "agreement": run.agreement}
    return {
        "kind": "run",
        "id": planned.id,
        **asdict(planned.cell),
        "seed": planned.seed,
        "epochs": planned.job.training.epochs,
        "test": run.test,
        **{name: value for name, value in optional.items() if value is not None},
        "val_error": [epoch.val_error for epoch in run.history],
        "train_loss": [round(epoch.train_loss, 5) for epoch in run.history],
        "seconds": round(run.seconds, 3),
        "epoch_seconds": [round(epoch.seconds, 3) for epoch in run.history],
    }


def _run(planned: Planned, name: str, line: lines.Line) -> Run:
    course = zip(line["train_loss"], line["val_error"], line["epoch_seconds"], strict=True)
    return Run(
        method=name,
        seed=planned.seed,
        error=line["test"]["error"],
        seconds=line["seconds"],
        history=[Epoch(i, *figures) for i, figures in enumerate(course, start=1)],
        start_error=line.get("start_error"),
        agreement=line.get("agreement"),
        checkpoint=None if planned.job.keep is None else str(planned.job.keep),
        test=line["test"],
    )


def _cost(line: lines.Line) -> Cost:
    parameters, macs = (Count(line[name], line[f"{name}_ic"]) for name in ("parameters", "macs"))
    return Cost(parameters, macs, Latency(**line["latency"]))


def _write_evidence(
    settings: Settings,
    planned: Sequence[Planned],
    known: dict[str, lines.Line],
    costs: Sequence[lines.Line],
    rest: dict[str, Any],
) -> Compared:
    shown = entries(settings, planned)
    runs = {e.name: [_run(p, e.name, known[p.id]) for p in planned if p.cell == e.cell] for e in shown}
    by_network = {line["name"]: _cost(line) for line in costs}
    by_row, data = {e.name: by_network[e.cell.network] for e in shown}, rest["data"]
    found = rows(shown, runs, by_row, settings.confidence, data.get("folds"))
    table, said = comparison_table(found, settings, data), verdicts(found)
    plot_curves(curves(shown, runs), settings.out / "curves.png", title=table.title, confidence=settings.confidence)
    record = {
        "schema": SCHEMA,
        "settings": {name: value for name, value in asdict(settings).items() if name != "data"},
        **rest,
        "methods": [asdict(row) for row in found],
        "verdicts": said,
        "runs": [asdict(run) for own in runs.values() for run in own],
    }
    text = json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"
    markdown = table.markdown() + "\n" + "\n".join(f"- {verdict}" for verdict in said) + "\n"
    for name, content in (("results.json", text), ("results.md", markdown)):
        with atomic_write(settings.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return Compared(found, table, said)
