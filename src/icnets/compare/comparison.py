"""``icnets compare``: basic, IC, IC + WLD and peer units over seeds; one table, one JSON, the pictures."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from icnets.compare.boundary import boundary_experiment
from icnets.compare.comparison_table import Cost, Row, comparison_table, curves, rows, title_of, verdicts
from icnets.compare.datasets import make_data
from icnets.compare.grid import run_grid, showing, worker_count
from icnets.compare.methods import Method, Network, Settings
from icnets.compare.plots import plot_boundaries, plot_curves
from icnets.compare.runs import Job, Run, build, distillation
from icnets.profile.machine import machine, require_accelerator, versions
from icnets.profile.measure import count_macs, count_parameters, measure_latency
from icnets.support.files import atomic_write
from icnets.support.tables import Table, show

__all__ = ["compare", "jobs_of", "main"]

SCHEMA = 1


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    from icnets.data.data_module import ImageData

    parser = ArgumentParser(prog="icnets compare", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe, such as recipes/demo.yaml")
    parser.add_class_arguments(ImageData, "data", skip={"seed", "predict_root"}, instantiate=False)
    parser.add_class_arguments(Settings, sub_configs=True)
    return parser


def _for_folder(argv: Sequence[str], folder: dict[str, Any]) -> list[str]:
    """The arguments with the recipe's settings for folders right behind the recipe, so that what follows overrides."""
    known = [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    at = known[-1] + (2 if argv[known[-1]] == "--config" else 1) if known else 0
    return [*argv[:at], "--config", json.dumps(folder), *argv[at:]]


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], Settings]:
    """The data's arguments and everything else; what the command line says holds against the recipe."""
    from icnets.cli.parser import parse

    parser = _parser()
    args = parse(parser, argv)
    if args.data.root is not None and args.folder:
        args = parse(parser, _for_folder(argv, dict(args.folder)))
    names = {f.name for f in dataclasses.fields(Settings)}
    return vars(args.data), Settings(**{name: args[name] for name in names})


def _plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _costs(settings: Settings, jobs: Sequence[Job], data: Any) -> dict[str, Cost]:
    """Parameters, MACs and time; methods with the same network share one measurement."""
    batch = next(iter(data.test_dataloader()))[0]
    sample = batch[:1].expand(settings.latency_batch, *batch.shape[1:]).contiguous()
    kinds = {job.method: (repr(job.network), job.ic) for job in jobs}
    models: dict[str, torch.nn.Module] = {}
    for job in jobs:
        if kinds[job.method] not in [kinds[name] for name in models]:
            models[job.method] = build(job, data)[0]
    latency = measure_latency(models, sample, rounds=settings.latency_rounds, threads=settings.threads)
    found = {
        kinds[name]: Cost(count_parameters(model), count_macs(model, sample[:1]), latency[name])
        for name, model in models.items()
    }
    return {job.method: found[kinds[job.method]] for job in jobs}


def _job(settings: Settings, data: dict[str, Any], method: Method, seed: int) -> Job:
    first = settings.methods[0]
    network = settings.network
    if method.network is not None:
        network = Network(method.network, network.options if method.options is None else method.options)
    elif method.options is not None:
        network = replace(network, options=method.options)
    basic = _path(settings, first, seed)
    return Job(
        method=method.name,
        seed=seed,
        # The images have been looked at by now; a run needn't read every header again.
        data={**data, "check_limit": 0},
        network=network,
        training=settings.training.of(method.start),
        basic=settings.network,
        ic=method.ic,
        wld=settings.wld if method.wld else None,
        start=basic if method.start == "basic" else None,
        teacher=basic if method.wld else None,
        keep=_path(settings, method, seed) if method == first or settings.save_checkpoints else None,
        threads=settings.threads,
        accelerator=settings.accelerator,
    )


def _path(settings: Settings, method: Method, seed: int) -> Path:
    """Where the trained network of ``method`` with this seed is kept."""
    words = "".join(c if c.isalnum() else " " for c in method.name.lower().replace("+", " plus ")).split()
    return settings.out / "checkpoints" / f"{'-'.join(words)}-seed{seed}.safetensors"


def jobs_of(settings: Settings, data: dict[str, Any], seed: int) -> list[Job]:
    """One job per method, in their order; ``data`` as for :func:`compare`."""
    return [_job(settings, data, method, seed) for method in settings.methods]


def _jobs(settings: Settings, data: dict[str, Any]) -> list[Job]:
    """One job per method and seed, the basic networks first."""
    by_seed = [jobs_of(settings, data, seed) for seed in settings.seeds]
    return [*(own[0] for own in by_seed), *(job for own in by_seed for job in own[1:])]


def compare(settings: Settings, data: dict[str, Any], command: str = "") -> tuple[list[Row], Table]:
    """Trains every method with every seed and writes the evidence to ``settings.out``.

    Writes results.json, results.md, curves.png, decision_boundary.png and checkpoints/.

    Args:
        settings: methods, seeds and training.
        data: arguments of :class:`icnets.data.data_module.ImageData`, without its seed.
        command: what was typed, for the record.

    Returns:
        The rows, and the table that shows them.

    Raises:
        ValueError: images, a network or a setting that can't be used, before anything is trained.
    """
    start = time.monotonic()
    require_accelerator(settings.accelerator)
    distillation(settings.wld, settings.training)
    images = make_data(data, settings.seeds[0])
    jobs = _jobs(settings, data)
    firsts = [job for job in jobs if job.seed == settings.seeds[0]]
    for job in firsts:
        build(job, images)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "checkpoints").mkdir(exist_ok=True)
    workers = worker_count(settings.workers, len(jobs), settings.accelerator)
    print(_opening(settings, images, workers), flush=True)
    with showing(len(jobs), sum(job.training.epochs for job in jobs)) as progress:
        done = [run for _, run in run_grid(jobs, workers, progress)]
    order = {seed: i for i, seed in enumerate(settings.seeds)}
    runs = {
        method.name: sorted((r for r in done if r.method == method.name), key=lambda r: order[r.seed])
        for method in settings.methods
    }
    costs = _costs(settings, firsts, images)
    result = rows(settings.methods, runs, costs, settings.confidence)
    title = title_of(settings.network.name, images.root, images.size("train"), len(settings.seeds))
    table = comparison_table(result, title, f"{images.size('test')} test images")
    _write_evidence(settings, data, images, runs, result, table, command, workers, start)
    return result, table


def _opening(settings: Settings, images: Any, workers: int) -> str:
    where = "embedded handwritten digits" if images.root is None else str(images.root)
    return (
        f"{where}: {images.num_classes} classes, {images.size('train')} training, {images.size('val')} validation and "
        f"{images.size('test')} test images, {images.in_chans}×{images.image_size}×{images.image_size}\n"
        f"{len(settings.methods)} methods × {len(settings.seeds)} seeds in {workers} "
        f"process{'es' * (workers > 1)}; results go to {settings.out}/"
    )


def _write_evidence(
    settings: Settings,
    data: dict[str, Any],
    images: Any,
    runs: dict[str, list[Run]],
    result: list[Row],
    table: Table,
    command: str,
    workers: int,
    start: float,
) -> None:
    out = settings.out
    plot_curves(curves(settings.methods, runs), out / "curves.png", title=table.title, confidence=settings.confidence)
    neurons = boundary_experiment()
    plot_boundaries(neurons, out / "decision_boundary.png")
    record = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": round(time.monotonic() - start, 1),
        "settings": _plain(settings),
        "data": {
            "arguments": _plain(data),
            "classes": images.class_names,
            "images": {split: images.size(split) for split in ("train", "val", "test")},
        },
        "versions": versions("torch", "timm", "lightning", "torchvision", "numpy", "scikit-learn"),
        "machine": {**machine(), "workers": workers, "threads_per_worker": settings.threads},
        "methods": [row.to_dict() for row in result],
        "verdicts": verdicts(result),
        "neurons": {
            task: {kind: {"accuracy": fit.accuracy, "loss": fit.loss} for kind, (_, _, fit) in fits.items()}
            for task, fits in neurons.items()
        },
        "runs": [_plain(run) for own in runs.values() for run in own],
    }
    _write(out / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    _write(out / "results.md", table.markdown() + "\n" + "\n".join(f"- {v}" for v in verdicts(result)) + "\n")


def _closing(settings: Settings, data: dict[str, Any], argv: Sequence[str], seconds: float) -> str:
    out = settings.out
    lines = [
        "",
        f"{out}/results.json         every number, run and setting",
        f"{out}/results.md           the table above",
        f"{out}/curves.png           validation error by epoch and by second",
        f"{out}/decision_boundary.png  one IC neuron and one plain neuron on XOR and two moons",
        f"{out}/checkpoints/         icnets.load(path) rebuilds a network",
        f"next: {shlex.join(['icnets', 'report', str(out)])}    all of it as one page, with images",
        f"All in {seconds:.0f} s.",
    ]
    if data["root"] is None:
        again = shlex.join(["icnets", "compare", *argv, "--data.root"]) + " DIR"
        lines += [
            "",
            "Next, your own images (DIR/train and DIR/val, or one folder per class in DIR):",
            f'  {again}\n  make demo ARGS="--data.root DIR"',
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    argv = sys.argv[1:] if argv is None else list(argv)
    start = time.monotonic()
    data, settings = _parse(argv)
    result, table = compare(settings, data, shlex.join(["icnets", "compare", *argv]))
    print()
    show(table)
    print()
    for sentence in verdicts(result):
        print(sentence)
    print(_closing(settings, data, argv, time.monotonic() - start))
    return 0
