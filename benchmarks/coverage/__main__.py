"""Convert architectures and check each: ``python benchmarks/coverage``.

The same function after a warm start, gradients, checkpoint, the way back, the deployed form; on a sample torch.compile
and ONNX. By default one of each family, the smallest. Each is a line of a file as soon as it is done; what was stopped
goes on where it was. Example, the families whose names begin with r:

  python benchmarks/coverage --only 'timm/r*'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from architectures import SOURCES
from coverage_page import markdown, summary
from coverage_runs import run
from icnets.support.files import atomic_write

__all__ = ["main"]

LINES = Path("runs/coverage/lines.jsonl")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--all", action="store_true", help="everything of up to --largest parameters: hours")
    add(
        "--sources",
        nargs="+",
        choices=list(SOURCES),
        default=["timm", "torchvision"],
        metavar="S",
        help=", ".join(SOURCES),
    )
    add("--only", default="*", metavar="PATTERN", help="ids that fit, such as 'timm/resnet*'")
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="your own modules: classes in DIR/*.py with a shape, that of their input",
    )
    add("--lines", type=Path, default=LINES, metavar="FILE", help=f"file of results (default: {LINES})")
    add("--docs", type=Path, metavar="FILE", help="write the page of results")
    add("--workers", type=int, metavar="N", help="processes at the same time")
    add("--limit", type=float, default=900.0, metavar="S", help="seconds for one network (default: 900)")
    add("--largest", type=float, default=100e6, metavar="N", help="parameters of the largest with --all (default: 1e8)")
    add("--sample", type=int, default=20, metavar="N", help="torch.compile and ONNX for every N-th (default: 20)")
    add("--retry", action="store_true", help="do again what failed")
    args = parser.parse_args(argv)
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}; check --folder")
    if args.sample < 1:
        parser.error(f"--sample is {args.sample}; it must be 1 or more: every so many networks are compiled")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    found = run(args)
    print(f"\n{summary(found)}\n{args.lines}    every network, one line each")
    if args.docs is not None:
        with atomic_write(args.docs) as unfinished:
            unfinished.write_text(markdown(found), encoding="utf-8")
        print(args.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
