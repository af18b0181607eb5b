"""``icnets report``: reads the folder of a comparison, looks at its networks, and writes one page."""

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser
from icnets.comparison.run_files import read_run
from icnets.report.page import write_report


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(
        prog="icnets report",
        description="One HTML page about a comparison, which needs no network. The images are read again from where it "
        "found them; without them the page says so and has the rest.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of icnets compare, such as runs/demo")
    add("--out", metavar="FILE", type=Path, help="the page (default: report.html in the folder of RUN)")
    add("--method", metavar="NAME", help="the method that is looked at (default: the IC network with the least error)")
    add("--images", metavar="N", type=int, default=12, help="images on which it and its control differ (default: 12)")
    add("--force", action="store_true", help="replace FILE if it exists")
    args = parser.parse_args(argv)
    out = args.out or args.run / "report.html"
    if args.images < 0:
        raise ValueError(f"--images is {args.images}; it must be at least 0")
    comparison = read_run(args.run)
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} of --out doesn't exist; create it first")
    if args.out is not None and out.exists() and not args.force:
        raise ValueError(f"{out} exists already; give another --out, or --force")
    write_report(comparison, out, method=args.method, images=args.images)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); it needs no network: open it, or send it")
    return 0
