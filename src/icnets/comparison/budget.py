"""How many epochs and seeds fit into the minutes that a user gives, from steps that are measured."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from icnets.comparison.planned_runs import Cell, Job, digest
from icnets.comparison.runs import build, create_for, data_of, fit
from icnets.comparison.settings import Method, Settings
from icnets.profile.measure import use_threads
from icnets.support.files import write_json
from icnets.support.quiet import silence
from icnets.support.text import counted

_FEW, _MANY = 3, 10  # seeds: an interval needs 3, and more than 10 are worth less than longer trainings
_SHORT, _LONG = 10, 30  # epochs, likewise
_PART = 0.12  # of the time that one run may take, so that there is something to see soon
_IDLE = 0.92  # of the processes' time is used: at the end one waits for another
_LAST = 12.0  # seconds for the table and the page
_WARM, _STEPS, _ENOUGH = 2, 8, 2.0  # steps of a probe that don't count, and all of them; or seconds
_FRESH = 512  # images of an epoch that pass once more, for the statistics of batch norms


@dataclass(frozen=True)
class Pace:
    """Seconds that a job takes: ``step`` and ``forward`` for one image, ``rest`` once for a run."""

    step: float
    forward: float
    rest: float

    def epoch(self, sizes: dict[str, int]) -> float:
        """Seconds of an epoch, with its validation."""
        passes = min(sizes["train"], _FRESH) + sizes["val"]
        return self.step * sizes["train"] + self.forward * passes

    def run(self, epochs: int, sizes: dict[str, int]) -> float:
        """Seconds of a run with its tests, of the network that it starts from as well."""
        return self.rest + epochs * self.epoch(sizes) + self.forward * (sizes["val"] + 3 * sizes["test"])


@dataclass(frozen=True)
class Budget:
    """What was chosen. ``seconds``: that a run of each method should take, divided by the number of processes."""

    of: str
    minutes: float
    epochs: int
    seeds: int
    seconds: list[float]

    def __str__(self) -> str:
        return f"{counted(self.seeds, 'seed')} of {counted(self.epochs, 'epoch')}"

    def apply(self, settings: Settings) -> Settings:
        """The settings with these epochs and seeds, and without a budget."""
        training = replace(settings.training, epochs=self.epochs, extra_epochs=self.epochs)
        return replace(settings, training=training, seeds=list(range(self.seeds)), minutes=None)


def probes(jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose paces say those of all: the basic network's, and the costliest."""
    first = [job for job in jobs if job.seed == jobs[0].seed]
    return [first[0], max(first, key=lambda job: (job.ic is not None) + (job.wld is not None))]


def pace_of(method: Method, basic: Pace, other: Pace) -> Pace:
    """The pace of a method, of which :func:`probes` has neither: without collisions, a teacher is a forward pass."""
    if method.ic is None and method.network is None:
        return replace(basic, step=basic.step + basic.forward * bool(method.wld))
    return replace(other, step=max(other.step - basic.forward * (not method.wld), basic.step))


def chosen(of: str, minutes: float, paces: Sequence[Pace], sizes: dict[str, int], gone: float) -> Budget:
    """Epochs and seeds for ``minutes``.

    Three seeds with as many epochs as fit, up to 10; then more seeds, up to 10; then more epochs, up to 30. Where
    three seeds of one epoch don't fit, there are fewer seeds.

    Args:
        of: digest of what is compared.
        minutes: of the whole comparison.
        paces: of each method, with as many processes at work as there will be; their seconds are those of one process,
            divided by the number of processes.
        sizes: images of each split.
        gone: seconds that are gone already.

    Example:
        >>> sizes = {"train": 200, "val": 50, "test": 50}
        >>> print(chosen("", 5, [Pace(0.005, 0.002, 1)] + 4 * [Pace(0.008, 0.003, 1)], sizes, gone=15))
        3 seeds of 6 epochs
    """
    left = _IDLE * max(60 * minutes - gone - _LAST, 0.0)

    def seed(epochs: int) -> float:
        return sum(pace.run(epochs, sizes) for pace in paces)

    fits = [epochs for epochs in range(1, _LONG + 1) if _FEW * seed(epochs) <= left]
    longest = max(paces, key=lambda pace: pace.run(1, sizes))
    short = [e for e in fits if e <= _SHORT and longest.run(e, sizes) <= _PART * 60 * minutes]
    epochs = max(short or fits[:1] or [1])
    seeds = min(_MANY, max(1, math.floor(left / seed(epochs))))
    if seeds == _MANY:
        epochs = max(e for e in range(epochs, _LONG + 1) if seeds * seed(e) <= left)
    return Budget(of, minutes, epochs, seeds, [pace.run(epochs, sizes) for pace in paces])


def budgeted(
    settings: Settings, jobs: Sequence[Job], workers: Any, seen: dict[str, Any], start: float
) -> tuple[Settings, dict[str, float]]:
    """The settings with the epochs and seeds that fit, and the seconds that an epoch of each method should take.

    They are kept in budget.json, so that the same command goes on with them; with other minutes it goes on with other
    seeds of the same epochs.

    Args:
        settings: with ``minutes``.
        jobs: of one plan.
        workers: processes that measure.
        seen: ``sizes`` of the splits, and the classes.
        start: when the minutes began, by time.monotonic.

    Raises:
        ValueError: budget.json is damaged, or of another comparison.
    """
    of, minutes = digest([seen, [job.id for job in jobs]]), float(settings.minutes or 0)
    if _file(settings).is_file():
        budget = _read(settings)
        if budget.of != of:
            what = f"{_file(settings)} is of another comparison"
            raise ValueError(f"{what}, with other images or settings; give another --out")
        if minutes != budget.minutes:
            budget = replace(budget, minutes=minutes, seeds=max(1, int(budget.seeds * minutes / budget.minutes)))
    else:
        basic, other = workers.paces(probes(jobs))
        paces = [pace_of(method, basic, other) for method in settings.methods]
        budget = chosen(of, minutes, paces, seen["sizes"], time.monotonic() - start)
    write_json(asdict(budget), _file(settings))
    size = settings.data.get("image_size")
    pixels = f"images of {size} pixels, " if size else ""
    print(f"{minutes:g} minute{'s' * (minutes != 1)}: {budget}, {pixels}{seen['sizes']['train']} to train", flush=True)
    if budget.seeds < _FEW:
        print("fewer than 3 seeds have no interval: give more --minutes, or a smaller --data.image_size", flush=True)
    cells = [str(Cell(method.name, method.name)) for method in settings.methods]
    expected = [workers.count * seconds / budget.epochs for seconds in budget.seconds]
    return budget.apply(settings), dict(zip(cells, expected, strict=True))


def with_more_seeds(settings: Settings, minutes: float, gone: float, a_seed: float) -> Settings | None:
    """The settings with the seeds for which there is time left, in budget.json as well; None: there is none.

    Args:
        settings: of which everything is done.
        minutes: of the whole comparison.
        gone: seconds that are gone.
        a_seed: seconds that one more seed takes.
    """
    more = min(math.floor((60 * minutes - gone - _LAST) / a_seed), _MANY - len(settings.seeds))
    if more < 1:
        return None
    seeds = len(settings.seeds) + more
    write_json(asdict(replace(_read(settings), seeds=seeds)), _file(settings))
    print(f"there is time for {seeds} seeds", flush=True)
    return replace(settings, seeds=list(range(seeds)))


def _file(settings: Settings) -> Path:
    return settings.out / "budget.json"


def _read(settings: Settings) -> Budget:
    """Raises ValueError where the budget is damaged."""
    try:
        return Budget(**json.loads(_file(settings).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        what = f"{_file(settings)} is damaged ({error})"
        raise ValueError(f"{what}; remove it, and epochs and seeds are chosen anew") from None


class _Clock(Callback):
    """Seconds per image of training steps, the first of which don't count; ends the training when it has enough."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._ends.append(time.perf_counter())
        timed = self._ends[_WARM - 1 :]
        if len(timed) > 1:
            self.seconds.append((timed[-1] - timed[-2]) / len(batch[0]))
            trainer.should_stop = len(self._ends) >= _STEPS or timed[-1] - timed[0] > _ENOUGH


@torch.no_grad()
def measure(job: Job) -> Pace:
    """The pace of a job in this process, from a few of its steps, which nothing keeps."""
    with use_threads(job.settings.threads), silence():
        for _ in range(2):  # the first imports what is used first
            start = time.perf_counter()
            data = data_of(job)
            model = build(job, data)
            rest = time.perf_counter() - start
        network, imports = job.settings.network, job.settings.imports
        teacher = None if job.wld is None else create_for(data, network, imports, starts=False)
        clock = _Clock()
        with torch.enable_grad():
            fit(job, model, data, teacher, clock, max_epochs=_STEPS, limit_val_batches=0)
        images, model = next(iter(data.val_dataloader()))[0], model.eval().cpu()
        for _ in range(3):
            start = time.perf_counter()
            model(images)
            forward = time.perf_counter() - start
    return Pace(median(clock.seconds), forward / len(images), rest)
