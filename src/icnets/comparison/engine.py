"""The engine of ``icnets compare``: runs what is missing, keeps each run as a line, and writes the evidence."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from icnets.comparison import lines
from icnets.comparison.comparison_table import Cost, comparison_table, rows, verdicts
from icnets.comparison.grid import run_grid, worker_count
from icnets.comparison.planned_runs import Job, entries, plan, without_places
from icnets.comparison.runs import Epoch, Run, build, distillation, make_data
from icnets.comparison.settings import Settings
from icnets.profile.machine import machine, require_accelerator, versions
from icnets.profile.measure import Count, Latency, count_macs, count_parameters, measure_latency
from icnets.support.files import atomic_write
from icnets.support.tables import Table

SCHEMA = 1  # of the lines and of results.json


def compare(settings: Settings, command: str = "") -> tuple[Table, list[str]]:
    """Trains what the file of lines lacks and writes the evidence to ``settings.out``.

    Writes lines.jsonl, results.json, results.md and checkpoints/. What is killed goes on when it is called again with
    the same settings.

    Args:
        settings: of the comparison.
        command: what was typed, for the record.

    Returns:
        The table of the methods, and a sentence for each IC network.

    Raises:
        ValueError: data, a network or a setting that can't be used, before anything is trained; lines of another
            comparison.
    """
    start = time.monotonic()
    require_accelerator(settings.accelerator)
    jobs = plan(settings)
    for job in jobs:
        distillation(job.wld, job.training)
    data = make_data(settings.data, jobs[0].seed, cache=settings.out / "data", imports=settings.imports)
    sizes = {split: data.size(split) for split in ("train", "val", "test")}
    jobs = plan(settings, {"sizes": sizes, "classes": list(data.class_names)})
    networks = _networks(settings, jobs)
    for job in networks.values():
        build(job, data)
    (settings.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    with lines.locked(settings.out / "lock"):
        known, measured = _known(settings, jobs)
        header = _header(settings, data, sizes)
        costs = _measured(settings, networks, data, measured)

        def save() -> None:
            lines.rewrite(settings.file, [header, *costs, *(known[job.id] for job in jobs if job.id in known)])

        save()
        workers = _train(settings, jobs, known)
        save()
    images = {"arguments": settings.data, "classes": list(data.class_names), "images": sizes}
    rest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": round(time.monotonic() - start, 1),
        "data": images | ({"folds": header["folds"]} if header["folds"] else {}),
        "versions": versions("torch", "timm", "lightning", "torchvision", "numpy", "scikit-learn"),
        "machine": {**machine(), "workers": workers, "threads_per_worker": settings.threads},
    }
    return _write_evidence(settings, jobs, known, costs, rest)


def _networks(settings: Settings, jobs: Sequence[Job]) -> dict[str, Job]:
    """One job for each network that occurs, from scratch where there is one, in the order of the settings."""
    found: dict[str, Job] = {}
    for network in settings.networks or settings.methods:
        own = [job for job in jobs if job.cell.network == network.name]
        if own:
            found[network.name] = min(own, key=lambda job: job.start is not None)
    return found


def _known(settings: Settings, jobs: Sequence[Job]) -> tuple[dict[str, lines.Line], dict[str, lines.Line]]:
    """What the file has already: runs by their present id, and networks by name."""
    present = {old: job.id for job in jobs for old in job.ids}
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
    settings: Settings, networks: dict[str, Job], data: Any, known: dict[str, lines.Line]
) -> list[lines.Line]:
    """Parameters, MACs and time of each network; measured once, beside the first."""
    described = {n: {**asdict(j.network), "ic": None if j.ic is None else asdict(j.ic)} for n, j in networks.items()}
    # Lines of earlier versions hold the time of a training step as well.
    kept = {name: known[name] for name in networks if known.get(name, {}).get("network") == described[name]}
    missing = [name for name in networks if "latency" not in kept.get(name, {})]
    if missing:
        print(f"measuring {len(missing)} networks", flush=True)
        # Methods with the same network share one measurement.
        same = {
            name: next(o for o in networks if described[o] == described[name]) for name in [*networks][:1] + missing
        }
        models = {name: build(networks[name], data)[0] for name in dict.fromkeys(same.values())}
        image = next(iter(data.test_dataloader()))[0][:1]
        sample = image.expand(settings.latency_batch, *image.shape[1:]).contiguous()
        latency = measure_latency(models, sample, rounds=settings.latency_rounds, threads=settings.threads)
        for name in missing:
            line: lines.Line = {"kind": "network", "name": name, "network": described[name]}
            model = models[same[name]]
            for key, count in (("parameters", count_parameters(model)), ("macs", count_macs(model, image))):
                line |= {key: count.total, f"{key}_ic": count.ic}
            kept[name] = line | kept.get(name, {}) | {"latency": asdict(latency[same[name]])}
    return [kept[name] for name in networks]


def _train(settings: Settings, jobs: Sequence[Job], known: dict[str, lines.Line]) -> int:
    """Runs what is missing, and what others need of a lost checkpoint; returns the number of processes."""
    missing = [job for job in jobs if job.id not in known]
    needed = {path for job in missing for path in job.needs}
    lost = [job for job in jobs if job.id in known and job.keep in needed and not Path(str(job.keep)).is_file()]
    workers = worker_count(settings.workers, len(lost) + len(missing), settings.accelerator)
    again = f", {len(lost)} again for their checkpoints" if lost else ""
    print(f"{len(jobs)} runs, {len(missing)} to do{again}, {workers} at a time; results go to {settings.out}/")
    for job, run in run_grid([*lost, *missing], workers):
        if job.id not in known:
            known[job.id] = _line(job, run)
            lines.append(settings.file, known[job.id])
    return workers


def _line(job: Job, run: Run) -> lines.Line:
    optional = {"start_error": run.start_error, "agreement": run.agreement}
    return {
        "kind": "run",
        "id": job.id,
        **asdict(job.cell),
        "seed": job.seed,
        "epochs": job.training.epochs,
        "test": run.test,
        **{name: value for name, value in optional.items() if value is not None},
        "val_error": [epoch.val_error for epoch in run.history],
        "train_loss": [round(epoch.train_loss, 5) for epoch in run.history],
        "seconds": round(run.seconds, 3),
        "epoch_seconds": [round(epoch.seconds, 3) for epoch in run.history],
    }


def _run(job: Job, name: str, line: lines.Line) -> Run:
    course = zip(line["train_loss"], line["val_error"], line["epoch_seconds"], strict=True)
    history = [Epoch(i, *figures) for i, figures in enumerate(course, start=1)]
    start_error, agreement = line.get("start_error"), line.get("agreement")
    error, kept = line["test"]["error"], None if job.keep is None else str(job.keep)
    return Run(name, job.seed, error, line["seconds"], history, start_error, agreement, kept, line["test"])


def _cost(line: lines.Line) -> Cost:
    parameters, macs = (Count(line[name], line[f"{name}_ic"]) for name in ("parameters", "macs"))
    return Cost(parameters, macs, Latency(**line["latency"]))


def _write_evidence(
    settings: Settings,
    jobs: Sequence[Job],
    known: dict[str, lines.Line],
    costs: Sequence[lines.Line],
    rest: dict[str, Any],
) -> tuple[Table, list[str]]:
    shown = entries(settings, jobs)
    runs = {e.name: [_run(job, e.name, known[job.id]) for job in jobs if job.cell == e.cell] for e in shown}
    by_network = {line["name"]: _cost(line) for line in costs}
    by_row, data = {e.name: by_network[e.cell.network] for e in shown}, rest["data"]
    found = rows(shown, runs, by_row, settings.confidence, data.get("folds"))
    table, said = comparison_table(found, settings, data), verdicts(found)
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
    return table, said
