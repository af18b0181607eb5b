"""The program ``icnets``. Heavy imports wait until a command needs them, so that help and mistakes answer at once."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from icnets.cli.help import COMMAND_HELP, HELP
from icnets.cli.parser import Parser
from icnets.support.text import one_line

__all__ = ["main"]

COMMANDS = [*COMMAND_HELP, "convert"]

# Modules whose ``main`` takes the arguments behind the command; what is neither here nor below is Lightning's.
_PROGRAMS = {
    "compare": "icnets.cli.compare",
    "data": "icnets.cli.data",
    "export": "icnets.cli.export",
    "hub": "icnets.cli.hub",
    "predict": "icnets.cli.predict",
    "profile": "icnets.cli.profile",
    "report": "icnets.cli.report",
}


def _require_unique_keys(files: Sequence[str]) -> None:
    """Raises ValueError for a configuration with a key twice in one mapping: YAML would take the last one silently."""
    import yaml

    for file in files:
        try:
            pending = [yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue  # the command's own parser says what is wrong with it
        while pending:
            node = pending.pop()
            if isinstance(node, yaml.SequenceNode):
                pending += node.value
            if not isinstance(node, yaml.MappingNode):
                continue
            lines: dict[Any, int] = {}
            for key, value in node.value:
                pending.append(value)
                line, name = key.start_mark.line + 1, key.value if isinstance(key, yaml.ScalarNode) else key
                if name in lines:
                    raise ValueError(f"{file} has {name!r} twice, in lines {lines[name]} and {line}; leave one of them")
                lines[name] = line


def _configurations_first(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Move ``--config FILE`` behind the command: the parser lets the later one win, and options outrank files.

    Returns:
        The arguments, and the files.
    """
    options, files = list[str](), list[str]()
    waiting = list(argv[1:])
    while waiting:
        arg = waiting.pop(0)
        name, _, file = arg.partition("=")
        if name not in ("-c", "--config") or not (file or waiting):
            options.append(arg)
        else:
            files.append(file or waiting.pop(0))
    return [*argv[:1], *(part for file in files for part in ("--config", file)), *options], files


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``icnets`` with ``argv`` (default: the command line's) and return the exit status.

    0: done. 1: ``data check`` found errors, or ``predict`` images that can't be read. 2: a mistake in the arguments or
    files, reported in one line. 130: interrupted. 141: nobody reads the output any more. Anything else that goes wrong
    is a bug of ours, and its traceback is shown.
    """
    args, files = _configurations_first(sys.argv[1:] if argv is None else argv)
    try:
        if files:
            _require_unique_keys(files)
        status = _dispatch(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("icnets: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way to end a run on Ctrl-C
            print("icnets: interrupted", file=sys.stderr)
            return 130
        if (saved := getattr(stop, "checkpoint", None)) is not None:
            print(f"icnets: told to stop; saved {saved}: go on with --ckpt_path last", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 141
        if not _is_users(error):
            raise
        if os.environ.get("ICNETS_DEBUG"):
            traceback.print_exc()
        print(f"icnets: error: {one_line(error)}", file=sys.stderr)
        return 2


def _dispatch(args: list[str]) -> int:
    if args[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
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
    if command in COMMAND_HELP and {"-h", "--help"} & set(rest):
        print(COMMAND_HELP[command], end="")
        return 0
    if command == "convert":
        return _convert(rest)
    if command == "predict" and "--help-all" in rest:  # both forms; Lightning's follows
        from icnets.cli.predict import parser

        parser().print_help()
    rest = ["--help" if arg == "--help-all" else arg for arg in rest]
    if command == "build":
        return _build(rest)
    if command in _PROGRAMS and not (command == "predict" and _of_a_run(rest)):
        return int(import_module(_PROGRAMS[command]).main(rest))
    from icnets.cli.fit import run

    run([command, *rest])
    return 0


def _of_a_run(rest: list[str]) -> bool:
    """Whether ``predict`` is asked for a run's own images, by Lightning's options, and not for MODEL and PATHS."""
    names = {arg.partition("=")[0] for arg in rest}
    own = {"--name", "--runs", "--config", "-c", "--ckpt_path", "--output", "--help", "--print_config"}
    return bool(own & names) or any(name.startswith(("--data.", "--model.", "--trainer.")) for name in names)


# Errors.


def _unread() -> bool:
    """Whether whoever read our output has had enough, as head has; then nothing more is written to it."""
    try:
        print(flush=True)  # other pipes break too, those to workers, and that is an error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_users(error: Exception) -> bool:
    """Whether an exception tells of a mistake of the user's, by the conventions of this package and Lightning."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(
        names & {"ValueError", "TypeError", "OSError", "FloatingPointError", "MisconfigurationException", "YAMLError"}
    )


# icnets build.


def _build(rest: list[str]) -> int:
    parser = Parser(prog="icnets build", allow_abbrev=False)
    parser.add_argument("--force", action="store_true")
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Read a basic network's checkpoint, convert the network, and write an IC network's checkpoint.",
        epilog=(
            "Example, for the state dict of a timm network:\n\n"
            "  icnets convert resnet18.pth ic_resnet18.safetensors --model resnet18 --num-classes 10\n"
        ),
        allow_abbrev=False,
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
