"""Converts and checks architectures, each a line of a file when it is done."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from architectures import Case, build, cases, prepare
from icnets.comparison import lines
from icnets.comparison.grid import worker_count
from icnets.convert.surgery import obstacle
from icnets.profile.machine import machine, versions
from icnets.support.processes import end_with_parent
from network_checks import SAMPLED, run_checks

__all__ = ["check", "chosen", "measure", "run"]

Work = Callable[[Case, Any], lines.Line]


# -- what a worker does ----------------------------------------------------------------------------------------------


def _begin() -> None:
    end_with_parent()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of other people's networks


def measure(case: Case, _: Any = None) -> lines.Line:
    """Family, parameters and convolutions of a case, without memory for its weights: a line of kind "size"."""
    line: lines.Line = {"kind": "size", "id": case.id, "family": case.family}
    try:
        try:
            with torch.device("meta"):
                model = build(case)
        except Exception:  # some constructors compute with values
            model = build(case)
    except Exception as error:
        return {**line, "parameters": 0, "convolutions": 0, "reason": f"{type(error).__name__}: {error}"[:300]}
    found = [m for m in model.modules() if obstacle(m) != "" and not isinstance(m, nn.Linear)]
    return {**line, "parameters": sum(p.numel() for p in model.parameters()), "convolutions": len(found)}


def check(case: Case, options: tuple[bool, float]) -> lines.Line:
    """Every check on a case: a line of kind "checks". ``options``: whether it is of the sample; a limit in seconds."""
    sampled, limit = options
    start = time.monotonic()
    found: dict[str, Any]
    try:
        with _limited(limit):
            prepared = prepare(case)
            found = {"size": prepared.size, **run_checks(prepared, sampled)}
    except Exception as error:
        found = {"converted": 0, "skipped": {}, "checks": {"prepare": f"{type(error).__name__}: {error}"[:300]}}
    seconds = round(time.monotonic() - start, 1)
    return {"kind": "checks", "id": case.id, "family": case.family, **found, "seconds": seconds}


class _limited:
    """Raises TimeoutError in this process once ``seconds`` have passed, where the system can."""

    def __init__(self, seconds: float) -> None:
        self.seconds = int(seconds)

    def __enter__(self) -> None:
        def stop(*_: Any) -> None:
            raise TimeoutError(f"it took more than {self.seconds} s")

        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, stop)
            signal.alarm(self.seconds)

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)


# -- many of them ----------------------------------------------------------------------------------------------------


def _run(work: Work, todo: Sequence[tuple[Case, Any]], workers: int) -> Iterator[lines.Line]:
    """A line for each case, in the order in which they are done. A process that ends costs its own case only."""
    suspects: list[tuple[Case, Any]] = []
    pending: dict[Future[lines.Line], tuple[Case, Any]] = {}
    waiting = list(reversed(todo))
    pool = _pool(workers)
    try:
        while waiting or pending:
            while waiting and len(pending) < 2 * workers:
                item = waiting.pop()
                pending[pool.submit(work, *item)] = item
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                item = pending.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    suspects.append(item)
            if suspects and not pending:
                pool.shutdown()
                yield from _run_alone(work, suspects)
                suspects, pool = [], _pool(workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads in whatever state they are
    return ProcessPoolExecutor(workers, context, initializer=_begin, max_tasks_per_child=8)


def _run_alone(work: Work, suspects: Sequence[tuple[Case, Any]]) -> Iterator[lines.Line]:
    for case, options in suspects:
        with _pool(1) as pool:
            try:
                yield pool.submit(work, case, options).result()
            except BrokenProcessPool:
                why = "its process ended, for want of memory as a rule"
                yield {"kind": "checks", "id": case.id, "family": case.family, "checks": {"prepare": why}, "seconds": 0}


# -- which -----------------------------------------------------------------------------------------------------------


def chosen(found: Sequence[Case], sizes: dict[str, lines.Line], everything: bool, largest: float) -> list[Case]:
    """Of the cases with a convolution the smallest of each family; with everything, all of ``largest`` or fewer."""
    known = [c for c in found if sizes[c.id]["convolutions"]]
    known.sort(key=lambda c: sizes[c.id]["parameters"])
    representatives: dict[tuple[str, str, str], Case] = {}
    for case in known:
        representatives.setdefault((case.source, case.task, case.family), case)
    small = [c for c in known if everything and sizes[c.id]["parameters"] <= largest]
    return list(dict.fromkeys([*representatives.values(), *small]))


def _header() -> lines.Line:
    packages = {"torch": "torch", "timm": "timm", "torchvision": "torchvision"}
    packages |= {"segmentation_models_pytorch": "segmentation-models-pytorch"}
    known = versions(*[name for module, name in packages.items() if find_spec(module) is not None])
    return {"kind": "coverage", "schema": 1, "versions": known, "machine": machine()}


def _failed(line: lines.Line) -> bool:
    return any(outcome != "ok" for outcome in line["checks"].values())


def run(args: argparse.Namespace) -> list[lines.Line]:
    """Does what the file lacks, and returns its lines."""
    sources = [*args.sources, *(["folder"] if args.folder is not None and "folder" not in args.sources else [])]
    found = cases(sources, args.folder, args.only)
    args.lines.parent.mkdir(parents=True, exist_ok=True)
    with lines.locked(args.lines.with_name(f"{args.lines.name}.lock")):
        known = lines.read(args.lines)
        sampled = {line["id"] for line in known if line.get("checks", {}).keys() & SAMPLED.keys()}  # and stay it
        if args.retry:
            known = [line for line in known if line["kind"] != "checks" or not _failed(line)]
        lines.rewrite(args.lines, [_header(), *(line for line in known if line["kind"] != "coverage")])
        sizes = {line["id"]: line for line in known if line["kind"] == "size"}
        for line in _do(args, "measured", measure, [(c, None) for c in found if c.id not in sizes]):
            sizes[line["id"]] = line
        done = {line["id"] for line in known if line["kind"] == "checks"}
        picked = chosen(found, sizes, args.all, args.largest)
        chance = {c.id for c in picked[:: args.sample]} | sampled
        todo = [(c, (c.id in chance, args.limit)) for c in picked if c.id not in done]
        for _ in _do(args, "checked", check, todo):
            pass
        return lines.read(args.lines)


def _do(args: argparse.Namespace, word: str, work: Work, todo: Sequence[tuple[Case, Any]]) -> Iterator[lines.Line]:
    if not todo:
        return
    workers = worker_count(args.workers, len(todo), "cpu")
    for number, line in enumerate(_run(work, todo, workers), start=1):
        lines.append(args.lines, line)
        bad = next((f"{k}: {v}" for k, v in line.get("checks", {}).items() if v != "ok"), line.get("reason", "ok"))
        print(f"[{number}/{len(todo)}] {word} {line['id']}: {bad}", flush=True)
        yield line
