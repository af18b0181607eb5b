"""Exporting and compiling ahead of the timing, several networks at a time."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from engines import ENGINES, Case

__all__ = ["forget", "prepare"]


@dataclass(frozen=True)
class _Job:
    """One network in the engines that need something made; these share artifacts, so one process makes them."""

    cases: tuple[tuple[str, Case], ...]

    def __str__(self) -> str:
        case = self.cases[0][1]
        return f"{case.family.name}, {case.variant}: {', '.join(f'{e} at batch {c.batch}' for e, c in self.cases)}"


def _mark(engine: str, case: Case) -> Path:
    return case.cache / f"{case.family.name}-{case.variant}-{engine}-{case.batch}.done"


def _jobs(cases: Iterable[tuple[str, Case]]) -> list[_Job]:
    found: dict[tuple[str, str], list[tuple[str, Case]]] = {}
    for engine, case in cases:
        if ENGINES[engine].prepared and not _mark(engine, case).exists():
            found.setdefault((case.family.name, case.variant), []).append((engine, case))
    return [_Job(tuple(job)) for job in found.values()]


def prepare(cases: Iterable[tuple[str, Case]], workers: int) -> None:
    """Makes what each (engine, case) needs and runs it once, so that it stands ready in the case's cache.

    What was made before isn't made again. ``workers``: networks at a time, each in a process of its own.
    """
    jobs = _jobs(cases)
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            print(_make(job), file=sys.stderr, flush=True)
        return
    # fork would copy torch's threads in whatever state they are
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(_make, jobs):
            print(line, file=sys.stderr, flush=True)


def _make(job: _Job) -> str:
    start = time.perf_counter()
    for engine, case in job.cases:
        torch.set_num_threads(case.threads)  # compiled code has their number in it
        ENGINES[engine].open(case)()
        _mark(engine, case).touch()
        forget()
    return f"ready in {time.perf_counter() - start:.0f} s: {job}"


def forget() -> None:
    """Frees what the last networks took, compiled code included."""
    torch._dynamo.reset()
    gc.collect()
