"""One HTML page about a comparison, or about runs of fit, which needs no network.

The images are read again from where they were found; without them the page says so and has the rest.
"""

from collections.abc import Sequence
from pathlib import Path

from icnets.cli.parser import Parser, require_folder_of, require_new
from icnets.comparison.run_files import read_run
from icnets.report.fit_page import read_fits, write_fit_report
from icnets.report.page import is_report, write_report
from icnets.support.text import require_at_least


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets report", description=__doc__)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="folder of icnets compare, or one or more of icnets fit")
    add("--out", metavar="FILE", type=Path, help="the page (default: report.html in the folder of the first RUN)")
    add("--images", metavar="N", type=int, default=12, help="images on which the two networks differ (default: 12)")
    add("--force", action="store_true", help="replace FILE if it exists")
    args = parser.parse_args(argv)
    out = args.out or args.runs[0] / "report.html"
    require_at_least(args, "--", images=0)
    of_fit = [folder for folder in args.runs if (folder / "history.csv").is_file()]
    if len(args.runs) > 1 and len(of_fit) < len(args.runs):
        other = next(folder for folder in args.runs if folder not in of_fit)
        raise ValueError(f"{other} is no run of icnets fit; give runs of fit, or one comparison")
    found = read_fits(of_fit) if of_fit else read_run(args.runs[0])
    require_folder_of(out, "--out")
    require_new(out, "--out", args.force or (args.out is None and out.is_file() and is_report(out)))
    if isinstance(found, list):
        write_fit_report(found, out, images=args.images)
    else:
        write_report(found, out, images=args.images)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); it needs no network: open it, or send it")
    return 0
