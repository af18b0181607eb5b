"""Many runs: which waits for which, several processes at a time, and how far it has come."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from icnets.comparison.budget import Pace, measure
from icnets.comparison.planned_runs import Job
from icnets.comparison.progress import Progress
from icnets.comparison.runs import Run, train, warm_up
from icnets.support.processes import end_with_parent

_MOST_WORKERS = 8


def worker_count(wanted: int | None, jobs: int, accelerator: str) -> int:
    """Processes to use: as many as wanted, or one per core that this process may use; never more than jobs."""
    if wanted is None:
        import torch

        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = 1 if on_gpu else min(cores, _MOST_WORKERS)
    return max(1, min(wanted, jobs))


class Workers:
    """Processes that train; with a count of 1 it is this one. ``count`` changes the time only.

    Leaving the context ends them: at once where that is by an exception, such as an interruption.

    Args:
        count: of processes.
        first: the job by which each process warms up, so that no method is charged for one-time costs.
    """

    def __init__(self, count: int, first: Job) -> None:
        self.count, self.first = count, first
        self._pool: Any = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # fork would copy torch's threads in whatever state they are
            self._ticks = context.SimpleQueue()
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._ticks, self.first))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in list((self._pool._processes or {}).values()):  # there is no public way before Python 3.14
                process.kill()  # Lightning has its own way with SIGTERM
        self._pool.shutdown(cancel_futures=True)

    def paces(self, jobs: Sequence[Job]) -> list[Pace]:
        """The pace of each job while all processes work, in the seconds of one process divided by their number."""
        if self._pool is None:
            return [measure(job) for job in jobs]
        several = [jobs[i % len(jobs)] for i in range(-(-self.count // len(jobs)) * len(jobs))]
        found = list(self._pool.map(measure, several))[: len(jobs)]
        return [Pace(*(seconds / self.count for seconds in (p.step, p.forward, p.rest))) for p in found]

    def runs(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[Job, Run]]:
        """Trains everything, and gives each job with its run as soon as it is done.

        A job waits for those among ``jobs`` that save what it needs, and stands behind them.

        Raises:
            RuntimeError: a process ended by itself, usually out of memory.
            Exception: whatever a run raised; the runs that wait are then dropped.
        """
        if self._pool is not None:
            yield from self._in_pool(list(jobs), progress)
            return
        if jobs and self.first.settings.minutes is None:
            warm_up(jobs[0])
        for job in jobs:
            begun = time.monotonic()
            run = train(job, lambda job=job: progress.epoch(job.id))  # type: ignore[misc]
            progress.finished(job, run, time.monotonic() - begun)
            yield job, run

    def _in_pool(self, waiting: list[Job], progress: Progress) -> Iterator[tuple[Job, Run]]:
        pending: dict[Future[tuple[Run, float]], Job] = {}
        while waiting or pending:
            coming = {job.keep for job in [*waiting, *pending.values()]}
            # No more than can be begun: what is interrupted has not been promised.
            for job in [job for job in waiting if not job.needs & coming][: self.count - len(pending)]:
                waiting.remove(job)
                pending[self._pool.submit(_in_worker, job)] = job
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while not self._ticks.empty():
                progress.epoch(self._ticks.get())
            for future in done:
                job = pending.pop(future)
                try:
                    run, seconds = future.result()
                except BrokenProcessPool as error:
                    what = f"a process ended while it trained {job.method!r}, seed {job.seed}"
                    raise RuntimeError(f"{what}; if memory ran out, use fewer --workers") from error
                progress.finished(job, run, seconds)
                yield job, run


_tick: Callable[[str], None] = lambda _: None  # noqa: E731  # in a worker: tell the parent of an epoch


def _begin(ticks: Any, first: Job) -> None:
    global _tick
    _tick = ticks.put
    end_with_parent()
    if first.settings.minutes is None:
        warm_up(first)


def _in_worker(job: Job) -> tuple[Run, float]:
    begun = time.monotonic()
    return train(job, lambda: _tick(job.id)), time.monotonic() - begun
