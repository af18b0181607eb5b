"""Compile the CPU kernels for this machine, its processor and its PyTorch: about 20 seconds, once.

It needs Linux and a C++ compiler: g++, or what CXX names. The library lies in ~/.cache/icnets, or where ICNETS_CACHE
says; ICNETS_NATIVE=0 leaves it unused.
"""

from collections.abc import Sequence

from icnets.cli.parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets build", description=__doc__)
    parser.add_argument("--force", action="store_true", help="build again, e.g. after the compiler was changed")
    args = parser.parse_args(argv)

    from icnets.unit.kernels import native

    there = native.library().is_file() and not args.force
    print(f"the CPU kernels {'were built already' if there else 'are built'}: {native.build(args.force)}")
    return 0
