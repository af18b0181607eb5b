"""``icnets data check DIR``: what is wrong with a data set, in a list by kinds and in a CSV file."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icnets.data.check.problems import KINDS, Problem
from icnets.support.files import atomic_write

if TYPE_CHECKING:
    from icnets.data.check.checks import Report

_SHOWN = 5  # problems of each kind
_SECONDS = 10  # between two lines of progress


def _parser() -> Any:
    from icnets.cli.parser import Parser

    parser = Parser(
        prog="icnets data",
        usage="icnets data check DIR [OPTIONS]",
        description="Decode every image of a data set, list what is broken, misfiled or double, and change nothing. "
        "Errors stop a training, or make it silently wrong; warnings work, but look. "
        "Exit status: 0 without errors, 1 with errors in the data, 2 for a mistake in the arguments.",
    )
    add = parser.add_argument
    add("command", metavar="check", choices=["check"], help="what to do")
    add(
        "root",
        metavar="DIR",
        type=Path,
        help="train/, val/ (and test/) with class folders, class folders, or tar shards",
    )
    add("--workers", metavar="N", type=int, default=_cores(), help="processes that decode (default: one per core)")
    add("--csv", metavar="FILE", type=Path, help="every problem: severity, kind, path, reason")
    add("--min-size", metavar="N", type=int, default=16, help="report images with a shorter side (default: 16 pixels)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 without errors in the data and 1 with some.

    Raises:
        ValueError: a mistake in the arguments.
    """
    args = _parser().parse_args(argv)
    for name, least in (("workers", 1), ("min_size", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least {least}")
    if args.csv is not None and not args.csv.parent.is_dir():
        raise ValueError(f"the folder {args.csv.parent} of --csv doesn't exist; create it first")

    from icnets.data.check.checks import check

    report = check(args.root, args.workers, args.min_size, CheckProgress())
    print(_text(args.root, report))
    if args.csv is not None:
        _write(args.csv, report.problems)
        print(f"\nall problems: {args.csv}")
    return int(report.count("error") > 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(root: Path, report: Report) -> str:
    """The summary, then each kind with its first few problems, errors before warnings."""
    images = " and ".join(f"{n:,}{'' if split == 'all' else f' {split}'}" for split, n in report.images.items())
    lines = [
        f"{root}: {images or 'no'} images in {report.classes} classes"
        f"{f', {report.shards} shards' if report.shards else ''}; "
        f"{_count(report.count('error'), 'error')}, {_count(report.count('warning'), 'warning')}"
    ]
    order = list(KINDS)
    by_kind = sorted(report.problems, key=lambda problem: order.index(problem.kind))
    for kind, group in groupby(by_kind, key=lambda problem: problem.kind):
        problems = list(group)
        severity, meaning = KINDS[kind]
        lines += ["", f"{severity}: {kind} ({len(problems):,}): {meaning}"]
        lines += [f"  {problem.path}: {problem.reason}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN:,} more")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _write(path: Path, problems: Sequence[Problem]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["severity", "kind", "path", "reason"])
        writer.writerows([problem.severity, problem.kind, problem.path, problem.reason] for problem in problems)


class CheckProgress:
    """Tells on standard error, every few seconds, how many files are done and how long the others will take."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, total: int, problems: int) -> None:
        now = time.monotonic()
        if done == 0:
            self.start = self.last = now
        elif now - self.last >= _SECONDS:
            self.last = now
            left = (now - self.start) * (total - done) / done
            text = f"{done:,} of {total:,} files, {problems:,} problems; about {left:.0f} s to go"
            print(text, file=sys.stderr, flush=True)
