"""``icnets build``: compile the CPU kernels for this machine."""

from collections.abc import Sequence

from icnets.cli.parser import Parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets build", allow_abbrev=False)
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args(argv)

    from icnets.unit.kernels import native

    there = native.library().is_file() and not args.force
    print(f"the CPU kernels {'were built already' if there else 'are built'}: {native.build(args.force)}")
    return 0
