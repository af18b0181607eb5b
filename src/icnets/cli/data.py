"""Decode every image of a data set, list what is broken, misfiled or double, and change nothing.

Errors stop a training, or make it silently wrong; warnings work, but look. Exit status: 0 without errors, 1 with errors
in the data, 2 for a mistake in the arguments.
"""

import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser, require_folder_of
from icnets.support.files import atomic_write
from icnets.support.text import require_at_least

_SHOWN = 5  # problems of each kind
_SECONDS = 10  # between two lines of progress


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 without errors in the data and 1 with some.

    Raises:
        ValueError: a mistake in the arguments, or a process that decodes died.
    """
    parser = Parser(prog="icnets data", usage="icnets data check DIR [OPTIONS]", description=__doc__)
    add = parser.add_argument
    add("command", metavar="check", choices=["check"], help="what to do")
    add("root", metavar="DIR", type=Path, help="train/, val/ (and test/) with class folders, or class folders")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--workers", metavar="N", type=int, default=cores, help="processes that decode (default: one per core)")
    add("--csv", metavar="FILE", type=Path, help="every problem: severity, kind, path, reason")
    args = parser.parse_args(argv)
    require_at_least(args, "--", workers=1)
    require_folder_of(args.csv, "--csv")
    from icnets.data.check import KINDS, check

    report = check(args.root, args.workers, CheckProgress())
    images = " and ".join(f"{n:,}{'' if split == 'all' else f' {split}'}" for split, n in report.images.items())
    severities = Counter(KINDS[problem.kind][0] for problem in report.problems)
    counts = [f"{(n := severities[kind]):,} {kind}{'s' * (n != 1)}" for kind in ("error", "warning")]
    print(f"{args.root}: {images or 'no'} images in {report.classes} classes; {', '.join(counts)}")
    for kind, (severity, meaning) in KINDS.items():
        if lines := [f"  {p.path}: {p.reason}" for p in report.problems if p.kind == kind]:
            print(f"\n{severity}: {kind} ({len(lines):,}): {meaning}", *lines[:_SHOWN], sep="\n")
            if len(lines) > _SHOWN:
                print(f"  and {len(lines) - _SHOWN:,} more")
    if args.csv is not None:
        with atomic_write(args.csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["severity", "kind", "path", "reason"])
            writer.writerows([KINDS[p.kind][0], p.kind, p.path, p.reason] for p in report.problems)
        print(f"\nall problems: {args.csv}")
    return int(severities["error"] > 0)


class CheckProgress:
    """Tells on standard error, every few seconds, how many images are done."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.last >= _SECONDS:
            self.last = time.monotonic()
            print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)
