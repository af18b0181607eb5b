"""The program ``icnets``. Heavy imports wait until a command needs them, so that help and mistakes answer at once."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from icnets.cli.config_errors import explained
from icnets.cli.parser import Parser
from icnets.support.text import one_line

__all__ = ["COMMANDS", "main"]

HELP = """\
usage: icnets COMMAND [OPTIONS]

Turn a convolutional network into an Inter-layer Collision (IC) network, train it, and compare the two.

{commands}

  icnets COMMAND --help     options of a command, with an example; --help-all: every option there is
  icnets --version          the version

Example, on scikit-learn's handwritten digits (nothing to download):

  icnets fit --config recipes/fit_digits.yaml --name digits
  icnets test --name digits --ckpt_path best

A mistake in arguments or files is one line on stderr and exit status 2. ICNETS_DEBUG=1 shows where it arose.
"""


# Each command with the function that takes the arguments behind it and returns the exit status.
COMMANDS = {
    "fit": ("icnets.cli.fit:fit", "train a basic or an IC network, with or without weak logit distillation"),
    "validate": ("icnets.cli.fit:validate", "accuracy of a trained network on the validation images"),
    "test": ("icnets.cli.fit:test", "accuracy of a trained network on the test images, and of each class"),
    "predict": ("icnets.cli.predict:main", "classes of image files, by a checkpoint or an exported artefact"),
    "compare": ("icnets.cli.compare:main", "basic, IC, IC with distillation over several seeds, in a table"),
    "report": ("icnets.cli.report:main", "a comparison, or a training, as one HTML page with figures and images"),
    "profile": ("icnets.cli.profile:main", "parameters, MACs, measured time and memory beside the basic network"),
    "convert": ("icnets.cli.app:_convert", "a basic network's checkpoint in, an IC network's checkpoint out"),
    "export": (
        "icnets.cli.export:main",
        "artefacts for ONNX, OpenVINO and others, each compared with PyTorch",
    ),
    "hub": ("icnets.cli.hub:main", "a network with its model card, as a folder or on the Hugging Face Hub"),
    "data": ("icnets.cli.data:main", "data check: decode every image of a data set, and list what is wrong"),
    "build": ("icnets.cli.app:_build", "compile the CPU kernels for this machine, once"),
}

_BEST = "runs/ic/checkpoints/best.safetensors"
_EXAMPLES = {
    "fit": "--name ic --model.model ic_resnet18 --data.root photos --model.init_from runs/basic/checkpoints/best.ckpt",
    "validate": "--name digits --ckpt_path best",
    "test": "--name digits --ckpt_path best",
    "predict": f"{_BEST} new_photos --out classes.csv",
    "compare": "--config recipes/demo.yaml --data.root photos --out runs/photos",
    "report": "runs/demo",
    "profile": "resnet50 --against resnet101 --batch-size 1",
    "convert": "resnet18.pth ic_resnet18.safetensors --model resnet18 --num-classes 10",
    "export": f"{_BEST} --format onnx --data.root photos",
    "hub": f"save {_BEST} shared/ic --evidence runs/ic --license mit",
    "data": "check photos --csv problems.csv",
    "build": "--force",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``icnets`` with ``argv`` (None: the command line's) and returns the exit status.

    0: done. 1: ``data check`` found errors, or ``predict`` images that can't be read. 2: a mistake in the arguments or
    files, reported in one line. 130: interrupted. 141: nobody reads the output any more. Anything else that goes wrong
    is a bug of icnets, and its traceback is shown.

    Example:
        >>> from icnets.cli import main
        >>> main(["--version"])
        icnets 0.1.0
        0
    """
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, SystemExit) as stop:
        if KeyboardInterrupt in (type(stop), type(stop.__context__)):  # in a run, Lightning exits on Ctrl-C
            print("icnets: interrupted", file=sys.stderr)
            return 130
        if (saved := getattr(stop, "checkpoint", None)) is not None:
            print(f"icnets: told to stop; saved {saved}: go on with --ckpt_path last", file=sys.stderr)
        code = getattr(stop, "code", None)
        return code if isinstance(code, int) else int(code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 141
        if not _is_users(error):
            raise
        if os.environ.get("ICNETS_DEBUG"):
            traceback.print_exc()
        print(f"icnets: error: {explained(error)}", file=sys.stderr)
        return 2


def _dispatch(args: list[str]) -> int:
    if args[:1] in (["-h"], ["--help"]):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        return 0
    if args[:1] == ["--version"]:
        from icnets import __version__

        print(f"icnets {__version__}")
        return 0
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {command!r}; {hint}" if command else f"no command given; {hint}")
    try:
        return _run(command, rest)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "icnets":
            raise
        raise ValueError(f"{command} needs {error.name}: pip install 'icnets[train]'") from error


def _run(command: str, rest: list[str]) -> int:
    page = Path(__file__).with_name("help") / f"{command}.txt"  # of a command whose parser takes seconds to make
    if {"-h", "--help"} & set(rest) and page.is_file():
        print(page.read_text(encoding="utf-8"), end="")
        return 0
    rest = ["--help" if arg in ("-h", "--help-all") else arg for arg in rest]
    try:
        return int(resolve_name(COMMANDS[command][0])(_configurations_first(rest)))
    except SystemExit as stop:
        if "--help" in rest and not stop.code:
            print(f"\nExample:\n\n  icnets {command} {_EXAMPLES[command]}")
        raise


def _configurations_first(args: Sequence[str]) -> list[str]:
    """Moves ``--config FILE`` to the front: the parser lets the later one win, and options outrank files."""
    early = Parser(add_help=False)
    early.add_argument("-c", "--config", action="append", default=[])
    found, rest = early.parse_known_args(args)
    return [*(part for file in found.config for part in ("--config", file)), *rest]


# Errors.


def _unread() -> bool:
    """Whether the reader of our output closed the pipe, as head does; then nothing more is written to it."""
    try:
        print(flush=True)  # other pipes break too, those to workers, and that is an error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_users(error: Exception) -> bool:
    """Whether this is a user's error, by the conventions of this package and Lightning."""
    users = {"ValueError", "TypeError", "OSError", "FloatingPointError", "MisconfigurationException", "YAMLError"}
    return any(cls.__name__ in users for cls in type(error).__mro__)


# icnets build.


def _build(rest: list[str]) -> int:
    parser = Parser(
        prog="icnets build",
        description="Compile the CPU kernels for this machine, its processor and its PyTorch: about 20 seconds, once. "
        "It needs Linux and a C++ compiler: g++, or what CXX names. The library lies in ~/.cache/icnets, or where "
        "ICNETS_CACHE says; ICNETS_NATIVE=0 leaves it unused.",
    )
    parser.add_argument("--force", action="store_true", help="build again, e.g. after the compiler was changed")
    args = parser.parse_args(rest)

    from icnets.unit.kernels import native

    there = native.library().is_file() and not args.force
    print(f"the CPU kernels {'were built already' if there else 'are built'}: {native.build(args.force)}")
    return 0


# icnets convert.


def _convert_parser() -> Parser:
    parser = Parser(
        prog="icnets convert",
        usage="icnets convert IN OUT [--model NAME] [OPTIONS]",
        description="Read a basic network's checkpoint, convert the network, and write an IC network's checkpoint.",
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="file of icnets.save, or a state dict (.pth, .safetensors)"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the new checkpoint, .safetensors")
    parser.add_argument("--model", metavar="NAME", help="timm's name of the network, where IN doesn't say it")
    parser.add_argument("--num-classes", metavar="N", type=int, help="classes of the network (default: as in IN)")
    parser.add_argument("--in-chans", metavar="N", type=int, help="image channels of the network (default: as in IN)")
    parser.add_argument(
        "--layers", choices=["all", "kxk", "no-stem"], default="all", help="convolutions to convert (default: all)"
    )
    parser.add_argument("--linear", action="store_true", help="convert fully connected layers as well")
    parser.add_argument(
        "--warm-start",
        choices=["none", "gain"],
        default="gain",
        help="gain: exactly the same function (default); none: the paper's unit, w' from 0",
    )
    parser.add_argument("--no-inner-bias", action="store_true", help="leave out b1, the bias inside the rectifier")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def _convert(rest: list[str]) -> int:
    if named := {arg.partition("=")[0] for arg in rest} & {"--out", "--output", "--weights", "--init-from"}:
        raise ValueError(f"unknown option {min(named)}: both files stand without one, icnets convert IN OUT")
    args = _convert_parser().parse_args(rest)
    if args.source.is_dir():
        raise ValueError(f"{args.source} is a folder; give the file of weights in it")
    if not args.source.is_file():
        raise ValueError(f"there is no checkpoint {args.source}; check the path")
    if args.target.suffix != ".safetensors":
        raise ValueError(f"OUT is {args.target}; it must end in .safetensors")
    if not args.target.parent.is_dir():
        raise ValueError(f"the folder {args.target.parent} of OUT doesn't exist; create it first")
    if args.target.exists() and not args.force:
        raise ValueError(f"{args.target} exists already; give another OUT, or --force")

    from icnets import ICConfig, checkpoint, convert_, ic_parameters

    config = ICConfig(
        layers=args.layers, linear=args.linear, warm_start=args.warm_start, inner_bias=not args.no_inner_bias
    )
    network, notes, origin = _read_basic(args)
    if next(iter(ic_parameters(network)), None) is not None:
        raise ValueError(f"{args.source} holds an IC network already")
    report = convert_(network, config, optimizers=())
    checkpoint.save(network, args.target, metadata=notes)
    print(*([f"read {origin} of {args.source}"] if origin else []), f"{report}\nwrote {args.target}", sep="\n")
    return 0


def _read_basic(args: argparse.Namespace) -> tuple[Any, dict[str, str], str]:
    """The network of ``args.source`` with its weights, the notes on it, and where in the file the weights stand.

    The network is made from the file's own header or its run's configuration, or by the name that was given.
    """
    from icnets import checkpoint, create_model
    from icnets.checkpoint.foreign import read_weights
    from icnets.training.network import load_weights, written_by_icnets

    if args.model is None and written_by_icnets(args.source):
        return *checkpoint.load_with_notes(args.source), ""
    of_run, problem = _of_run(args.source)
    if args.model is None:
        if of_run is None:
            why = f" ({problem})" if problem else ""
            raise ValueError(f"{args.source} doesn't say which network it is of; give --model NAME{why}")
        return *of_run, ""
    sizes = {"num_classes": args.num_classes, "in_chans": args.in_chans}
    network = create_model(args.model, ic=None)
    found = _sizes(network, read_weights(args.source, network.state_dict()).state)
    known: dict[str, Any] = {k: v or found[k] for k, v in sizes.items() if v or k in found}
    network = create_model(args.model, ic=None, **known)
    origin = load_weights(network, args.source)
    notes = checkpoint.read(args.source)[2] if written_by_icnets(args.source) else of_run[1] if of_run else {}
    return network.eval(), notes, origin


def _of_run(path: Path) -> tuple[tuple[Any, dict[str, str]] | None, str]:
    """The network of a checkpoint of ``icnets fit`` (.ckpt) and the notes on it; None and the reason for any other."""
    if path.suffix != ".ckpt":
        return None, ""
    from icnets.checkpoint.image_notes import notes_of_data
    from icnets.training.rebuild import rebuild

    try:
        network, notes = rebuild(path)
    except ValueError as error:
        return None, one_line(error)
    return (network, notes_of_data(notes)), ""


def _sizes(network: Any, state: dict[str, Any]) -> dict[str, int]:
    """Classes and image channels, read off the weights where timm says which layers are the first and the last."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    found = {}
    for size, entry, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        weight = state.get(f"{cfg.get(entry)}.weight")
        if weight is not None and weight.ndim > axis:
            found[size] = int(weight.shape[axis])
    return found
