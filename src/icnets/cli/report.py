"""``icnets report``: reads the folders of runs, looks at their networks, and writes one page."""

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser
from icnets.compare.run_files import read_run
from icnets.report.page import write_report


def _parser() -> Parser:
    parser = Parser(
        prog="icnets report",
        description="One HTML page about the runs, which needs no network. The images are read again from where a run "
        "found them; without them the page says so and has the rest.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", type=Path, nargs="+", help="folder of icnets compare, such as runs/demo, or icnets fit")
    add("--out", metavar="FILE", type=Path, help="the page (default: report.html in the folder of RUN)")
    add("--method", metavar="NAME", help="the method that is looked at (default: the IC network with the least error)")
    add("--images", metavar="N", type=int, default=12, help="images on which it and its control differ (default: 12)")
    add("--force", action="store_true", help="replace FILE if it exists")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    args = _parser().parse_args(argv)
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
