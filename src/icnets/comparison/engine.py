"""The engine of ``icnets compare``: runs what is missing, keeps each run as a line, and writes the evidence."""

import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from icnets.comparison import lines
from icnets.comparison.budget import budgeted, with_more_seeds
from icnets.comparison.comparison_table import Cost, Row, comparison_table, provisional, rows
from icnets.comparison.grid import Workers, worker_count
from icnets.comparison.layer_choice import with_layers
from icnets.comparison.planned_runs import Cell, Entry, Job, digest, entries, plain, plan, without_places
from icnets.comparison.progress import Progress
from icnets.comparison.runs import Epoch, Run, build, data_of, distillation
from icnets.comparison.settings import Settings
from icnets.comparison.verdict import recommendation, verdicts
from icnets.profile.machine import machine, require_accelerator, versions
from icnets.profile.measure import Count, Latency, count_macs, count_parameters, measure_latency
from icnets.support.files import atomic_write
from icnets.support.quiet import silence
from icnets.support.tables import Table

SCHEMA = 1  # of the lines and of results.json
_REFRESH = 20.0  # seconds between tables of what there is so far
_OVER = 1.15  # times the minutes that were given


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison: printing it shows the table and its verdicts.

    Args:
        table: of the methods.
        verdicts: a sentence for each IC network.
        recommendation: what to do, in a sentence.
        out: folder of results.json, results.md, lines.jsonl and checkpoints/.
        runs: that are done.
        planned: runs of the whole comparison.
        stop: why there are fewer; None: there aren't.
    """

    table: Table
    verdicts: list[str]
    recommendation: str
    out: Path
    runs: int
    planned: int
    stop: str | None = None

    def __str__(self) -> str:
        return "\n".join([self.table.plain(), "", *self.verdicts, *filter(None, ["", self.recommendation])])


def run_comparison(settings: Settings, command: str = "") -> Comparison:
    """Trains what the file of lines lacks and writes the evidence to ``settings.out``.

    Writes lines.jsonl, results.json, results.md and checkpoints/. What is killed goes on when it is called again with
    the same settings. An interruption (Ctrl-C, SIGTERM) ends it with what there is.

    Args:
        settings: of the comparison.
        command: what was typed, for the record.

    Raises:
        ValueError: data, a network or a setting that can't be used, before anything is trained; lines of another
            comparison.
        KeyboardInterrupt: interrupted before the first run was done.
    """
    start = time.monotonic()
    require_accelerator(settings.accelerator)
    jobs = plan(settings)
    for job in jobs:
        distillation(job.wld, job.training)
    data = data_of(jobs[0])
    settings = with_layers(settings, data)
    sizes = {split: data.size(split) for split in ("train", "val", "test")}
    seen = {"sizes": sizes, "classes": list(data.class_names)}
    jobs = plan(settings, seen)
    networks = _networks(settings, jobs)
    models = _built(networks, data)
    (settings.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    with lines.locked(settings.out / "lock"), _terminable():
        head = [_header(settings, data, sizes), *_measured(settings, networks, models, data)]
        models.clear()
        record, stop = None, None
        try:
            with Workers(worker_count(settings.workers, len(jobs), settings.accelerator), jobs[0]) as workers:
                minutes, expected = settings.minutes, dict[str, float]()
                if minutes is not None:
                    settings, expected = budgeted(settings, jobs, workers, seen, start)
                record = _Record(settings, seen, head, workers.count, start)
                record.train(workers, minutes, expected)
        except (KeyboardInterrupt, SystemExit, SIGTERMException) as error:  # Lightning exits on Ctrl-C
            if record is None or not record.known:
                raise KeyboardInterrupt from error
            stop = "interrupted"
        except _TimeIsOver:
            stop = "the time is over"
        assert record is not None
        return record.evidence(command, stop)


class _TimeIsOver(Exception):
    """More time is gone than was given, and there are enough seeds for a verdict."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Record:
    """The runs of a comparison, done or to be done, and the files that hold them."""

    def __init__(
        self, settings: Settings, seen: dict[str, Any], head: Sequence[lines.Line], workers: int, start: float
    ) -> None:
        self.settings, self.seen, self.workers, self.start = settings, seen, workers, start
        self.jobs, self.head = plan(settings, seen), head
        self.known = _known(settings, self.jobs)
        self._shown = -math.inf
        self.save()

    def save(self) -> None:
        """Writes the lines, in the order of the plan."""
        lines.rewrite(self.settings.file, [*self.head, *(line for _, line in self.done)])

    def train(self, workers: Workers, minutes: float | None, expected: dict[str, float]) -> None:
        """Runs everything; of a budget of ``minutes``, seeds for which there is time left as well."""
        begun, done = time.monotonic(), len(self.known)
        self._train_missing(workers, minutes, expected)
        while minutes is not None and (new := len(self.known) - done) >= len(self.cells):
            now = time.monotonic()
            more = with_more_seeds(self.settings, minutes, now - self.start, (now - begun) / new * len(self.cells))
            if more is None:
                return
            self.settings, self.jobs = more, plan(more, self.seen)
            self._train_missing(workers, minutes, expected)

    def _train_missing(self, workers: Workers, minutes: float | None, expected: dict[str, float]) -> None:
        """Runs what is missing, and what others need of a lost checkpoint."""
        known = self.known
        missing = [job for job in self.jobs if job.id not in known]
        gone = {path for job in missing for path in job.needs if not path.is_file()}
        lost = [job for job in self.jobs if job.id in known and job.keep in gone]
        again = f", {len(lost)} again for their checkpoints" if lost else ""
        count = f"{len(self.jobs)} runs, {len(missing)} to do{again}, {self.workers} at a time"
        print(f"{count}; results go to {self.settings.out}/", flush=True)
        todo = [*lost, *missing]
        for job, run in workers.runs(todo, Progress(todo, self.workers, expected)):
            if job.id not in known:
                known[job.id] = _line(job, run)
                lines.append(self.settings.file, known[job.id])
            if minutes is not None and len(known) < len(self.jobs):
                self._show(60 * _OVER * minutes)
        self.save()

    def _show(self, seconds: float) -> None:
        """Prints what there is so far, now and then; raises _TimeIsOver after so many ``seconds``."""
        now = time.monotonic()
        if now - self._shown > _REFRESH:
            self._shown = now
            print(provisional(self.rows(), f"so far, {len(self.known)} of {len(self.jobs)} runs").plain())
        done = Counter(job.cell for job, _ in self.done)
        if now - self.start > seconds and min(done[cell] for cell in self.cells) >= 3:
            raise _TimeIsOver

    @property
    def cells(self) -> set[Cell]:
        return {job.cell for job in self.jobs}

    @property
    def done(self) -> list[tuple[Job, lines.Line]]:
        """The runs that are done, in the order of the plan."""
        return [(job, self.known[job.id]) for job in self.jobs if job.id in self.known]

    @property
    def entries(self) -> list[Entry]:
        """The rows of the table of which a run is done."""
        done = {job.cell for job, _ in self.done}
        return [entry for entry in entries(self.settings, self.jobs) if entry.cell in done]

    @property
    def runs(self) -> dict[str, list[Run]]:
        """The runs that are done, by the name of their row."""
        named = {e.cell: e.name for e in self.entries}
        runs: dict[str, list[Run]] = {name: [] for name in named.values()}
        for job, line in self.done:
            runs[named[job.cell]].append(_run(job, named[job.cell], line))
        return runs

    def rows(self) -> list[Row]:
        """The rows of the table, of what is done."""
        header, *networks = self.head
        costs = {line["name"]: _cost(line) for line in networks}
        return rows(self.entries, self.runs, costs, self.settings.confidence, header["folds"])

    def evidence(self, command: str, stop: str | None) -> Comparison:
        """Writes results.json and results.md; ``stop``: why there isn't all of it."""
        settings, found = self.settings, self.rows()
        folds = {"folds": self.head[0]["folds"]} if self.head[0]["folds"] else {}
        data = {"arguments": settings.data, "classes": self.seen["classes"], "images": self.seen["sizes"], **folds}
        table, said = comparison_table(found, settings, data), verdicts(found)
        a_seed = 1.1 * sum(row.seconds for row in found) / self.workers / 60
        advice = "" if settings.parts else recommendation(found, a_seed)
        record = {
            "schema": SCHEMA,
            "settings": {name: value for name, value in asdict(settings).items() if name != "data"},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "seconds": round(time.monotonic() - self.start, 1),
            "data": data,
            "versions": versions("torch", "timm", "lightning", "torchvision", "numpy", "scikit-learn"),
            "machine": {**machine(), "workers": self.workers, "threads_per_worker": settings.threads},
            "methods": [asdict(row) for row in found],
            "verdicts": said,
            "recommendation": advice,
            "runs": [asdict(run) for own in self.runs.values() for run in own],
        }
        text = json.dumps(record, indent=1, allow_nan=False, default=str)
        markdown = "\n".join([table.markdown(), *(f"- {line}" for line in [*said, advice] if line)])
        for name, content in (("results.json", text), ("results.md", markdown)):
            with atomic_write(settings.out / name) as temporary:
                temporary.write_text(content + "\n", encoding="utf-8")
        return Comparison(table, said, advice, settings.out, len(self.known), len(self.jobs), stop)


def _networks(settings: Settings, jobs: Sequence[Job]) -> dict[str, Job]:
    """One job for each network that occurs, from scratch where there is one, in the order of the settings."""
    found: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: job.start is not None):
        found.setdefault(job.cell.network, job)
    return {n.name: found[n.name] for n in settings.networks or settings.methods if n.name in found}


def _described(job: Job) -> dict[str, Any]:
    return {**plain(job.network), "ic": None if job.ic is None else plain(job.ic)}


def _built(networks: dict[str, Job], data: Any) -> dict[str, nn.Module]:
    """The networks by the digest of what describes them: methods with the same network share it."""
    models: dict[str, nn.Module] = {}
    for job in networks.values():
        if (key := digest(_described(job))) not in models:
            with silence() if models else nullcontext():  # the first says what its weights lack; the others lack it too
                models[key] = build(job, data)
    return models


def _known(settings: Settings, jobs: Sequence[Job]) -> dict[str, lines.Line]:
    """The runs that the file has already, by their present id."""
    present = {old: job.id for job in jobs for old in job.ids}
    runs = [line for line in lines.read(settings.file) if line["kind"] == "run"]
    foreign = [line for line in runs if line["id"] not in present]
    if foreign and not settings.prune:
        line = foreign[0]
        what = f"{len(foreign)} of {len(runs)} runs in {settings.file} are none of this comparison as it is now"
        which = f"e.g. {line['network']!r} by {line['method']!r}, seed {line['seed']}"
        raise ValueError(f"{what}, {which}; give another --out or --lines, or --prune true to remove them")
    return {present[line["id"]]: line for line in runs if line["id"] in present}


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
    settings: Settings, networks: dict[str, Job], models: dict[str, nn.Module], data: Any
) -> list[lines.Line]:
    """Parameters, MACs and time of each network; measured once, beside the first."""
    read = [line for line in lines.read(settings.file) if line["kind"] == "network" and "latency" in line]
    known = {(line["name"], digest(line.get("network"))): line for line in read}
    keys = {name: digest(_described(job)) for name, job in networks.items()}
    missing = [name for name, key in keys.items() if (name, key) not in known]
    if missing:
        print(f"measuring {len(missing)} networks", flush=True)
        image = next(iter(data.test_dataloader()))[0][:1]
        sample = image.expand(settings.latency_batch, *image.shape[1:]).contiguous()
        timed = {keys[name]: models[keys[name]] for name in [next(iter(networks)), *missing]}
        latency = measure_latency(timed, sample, rounds=settings.latency_rounds, threads=settings.threads)
        for name in missing:
            model = models[keys[name]]
            line: lines.Line = {"kind": "network", "name": name, "network": _described(networks[name])}
            for key, count in (("parameters", count_parameters(model)), ("macs", count_macs(model, image))):
                line |= {key: count.total, f"{key}_ic": count.ic}
            known[name, keys[name]] = line | {"latency": asdict(latency[keys[name]])}
    return [known[name, key] for name, key in keys.items()]


def _line(job: Job, run: Run) -> lines.Line:
    return {
        "kind": "run",
        "id": job.id,
        **asdict(job.cell),
        "seed": job.seed,
        "epochs": job.training.epochs,
        "test": run.test,
        **{name: value for name in ("start_error", "agreement") if (value := getattr(run, name)) is not None},
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
