"""``icnets report``: reads the folders of runs, looks at their networks, and writes one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser
from icnets.compare.run_files import read_run
from icnets.report.page import write_report

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets report", allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args(argv)
    if args.out is None and len(args.runs) > 1:
        raise ValueError(f"{len(args.runs)} runs go into one page; say where: --out report.html")
    out = args.out or args.runs[0] / "report.html"
    if args.images < 0:
        raise ValueError(f"--images is {args.images}; it must be at least 0")
    records = [read_run(run) for run in args.runs]
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} of --out doesn't exist; create it first")
    if args.out is not None and out.exists() and not args.force:
        raise ValueError(f"{out} exists already; give another --out, or --force")
    write_report(records, out, method=args.method, images=args.images)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); it needs no network: open it, or send it")
    return 0
