"""Many runs: which waits for which, several processes at a time, and how far it has come."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from icnets.comparison.planned_runs import Job
from icnets.comparison.runs import Run, train, warm_up
from icnets.support.processes import end_with_parent

_MOST_WORKERS = 8
_PATIENCE = 20.0  # seconds after which something is said, where the first run takes longer


def worker_count(wanted: int | None, jobs: int, accelerator: str) -> int:
    """Processes to use: as many as wanted, or one per core that this process may use; never more than jobs."""
    if wanted is None:
        import torch

        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = 1 if on_gpu else min(cores, _MOST_WORKERS)
    return max(1, min(wanted, jobs))


class Progress:
    """Prints a line for every finished run, with the time gone and to go, and one before if that takes long."""

    def __init__(self, runs: int, epochs: int) -> None:
        self.runs, self.epochs, self.done, self.seen, self.silent = runs, epochs, 0, 0, True
        self.start = time.monotonic()

    def epoch(self) -> None:
        """Hears of a finished epoch."""
        self.seen += 1
        if self.silent and time.monotonic() - self.start >= _PATIENCE:
            self._say(f"{self.seen} of {self.epochs} epochs of all runs")

    def finished(self, run: Run) -> None:
        """Hears of a finished run."""
        self.done += 1
        number = f"[{self.done:>{len(str(self.runs))}}/{self.runs}]"
        self._say(f"{number} {run.method}, seed {run.seed}: error {run.error:.2f} % after {run.seconds:.0f} s")

    def _say(self, what: str) -> None:
        self.silent = False
        gone = time.monotonic() - self.start
        left = gone * (self.epochs - self.seen) / max(self.seen, 1)
        times = [f"{int(seconds) // 60}:{int(seconds) % 60:02d}" for seconds in (gone, left)]
        print(f"{what}; {times[0]} gone, about {times[1]} to go", flush=True)


def run_grid(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Run]]:
    """Trains everything, and gives each job with its run as soon as it is done. ``workers`` changes the time only.

    A job waits for those among ``jobs`` that save what it needs, and stands behind them.

    Raises:
        RuntimeError: a process ended by itself, usually out of memory.
        Exception: whatever a run raised; the runs that wait are then dropped.
    """
    if not jobs:
        return
    progress = Progress(len(jobs), sum(job.training.epochs for job in jobs))
    if workers == 1:
        warm_up(jobs[0])
        for job in jobs:
            run = train(job, progress.epoch)
            progress.finished(run)
            yield job, run
        return
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads in whatever state they are
    ticks = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(ticks, jobs[0]))
    try:
        yield from _in_pool(list(jobs), pool, ticks, progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_pool(
    waiting: list[Job], pool: ProcessPoolExecutor, ticks: Any, progress: Progress
) -> Iterator[tuple[Job, Run]]:
    pending: dict[Future[Run], Job] = {}
    while waiting or pending:
        coming = {job.keep for job in [*waiting, *pending.values()]}
        for job in [job for job in waiting if not job.needs & coming]:
            waiting.remove(job)
            pending[pool.submit(_in_worker, job)] = job
        done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        while not ticks.empty():
            ticks.get()
            progress.epoch()
        for future in done:
            job = pending.pop(future)
            try:
                run = future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a process ended while it trained {job.method!r}, seed {job.seed}; if memory ran out, "
                    "use fewer --workers"
                ) from error
            progress.finished(run)
            yield job, run


_tick: Callable[[], None] = lambda: None  # noqa: E731  # in a worker: tell the parent of an epoch


def _begin(ticks: Any, first: Job) -> None:
    global _tick
    _tick = lambda: ticks.put(1)  # noqa: E731
    end_with_parent()
    warm_up(first)


def _in_worker(job: Job) -> Run:
    return train(job, _tick)
