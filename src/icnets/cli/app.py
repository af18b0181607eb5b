"""usage: icnets COMMAND [OPTIONS]

Turn a convolutional network into an Inter-layer Collision (IC) network, train it, and compare the two.

{commands}

  icnets COMMAND --help     options of a command; --help-all: every option there is
  icnets --version          the version

Example: icnets fit photos --model resnet18    photos has a folder of images for each class

A mistake in arguments or files is one line on stderr and exit status 2. ICNETS_DEBUG=1 shows where it arose.
"""

# The docstring is the program's help. Heavy imports wait until a command needs them, so that help answers at once.

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

from icnets.cli.config_errors import explained
from icnets.cli.shorthand import require_network, written_out
from icnets.support.text import first_process

# Each command with the function of this package that takes the arguments behind it and returns the exit status.
COMMANDS = {
    "fit": ("fit:fit", "train a basic or an IC network, with or without weak logit distillation"),
    "validate": ("fit:validate", "accuracy of a trained network on the validation images"),
    "test": ("fit:test", "accuracy of a trained network on the test images, and of each class"),
    "predict": ("predict:main", "classes of image files, by a run, a checkpoint, an artifact or a network's name"),
    "compare": ("compare:main", "basic, IC, IC with distillation over several seeds, in a table"),
    "report": ("report:main", "a comparison as one HTML page with figures and images"),
    "profile": ("profile:main", "parameters, MACs, measured time and memory beside the basic network"),
    "convert": ("convert:main", "a basic network's checkpoint in, an IC network's checkpoint out"),
    "export": ("export:main", "artifacts for ONNX, OpenVINO and others, each compared with PyTorch"),
    "hub": ("hub:main", "a network with its model card, as a folder or on the Hugging Face Hub"),
    "build": ("build:main", "compile the CPU kernels for this machine, once"),
}


# Errors that are the user's, by the conventions of this package and Lightning; all others are ours.
_USERS = {"ValueError", "TypeError", "OSError", "FloatingPointError", "MisconfigurationException", "YAMLError"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``icnets`` with ``argv`` (None: the command line's) and returns the exit status.

    0: done. 1: ``predict`` found images that can't be read. 2: a mistake in the arguments or files, reported in one
    line. 130: interrupted. 141: nobody reads the output any more. Anything else that goes wrong
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
        way = "".join(f"; {note}" for note in getattr(stop, "__notes__", ()))
        if KeyboardInterrupt in (type(stop), type(stop.__context__)):  # in a run, Lightning exits on Ctrl-C
            _say_first(f"icnets: interrupted{way}")
            return 130
        if (saved := getattr(stop, "checkpoint", None)) is not None:
            _say_first(f"icnets: told to stop; saved {saved}{way}")
        code = getattr(stop, "code", None)
        return code if isinstance(code, int) else int(code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 141
        if _USERS.isdisjoint(cls.__name__ for cls in type(error).__mro__):
            raise
        if os.environ.get("ICNETS_DEBUG"):
            traceback.print_exc()
        print(f"icnets: error: {explained(error)}", file=sys.stderr)
        return 2


def _say_first(line: str) -> None:
    if first_process():
        print(line, file=sys.stderr)


def _dispatch(args: list[str]) -> int:
    if args[:1] in ([], ["-h"], ["--help"]):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
        print(str(__doc__).format(commands=commands), end="")
        return 0
    if args[:1] == ["--version"]:
        from icnets import __version__

        print(f"icnets {__version__}")
        return 0
    command, *rest = args
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {command!r}; {hint}")
    try:
        return _run(command, rest)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("icnets."):
            raise
        raise ValueError(f"{command} needs {error.name}: pip install 'icnets[train]'") from error


def _run(command: str, rest: list[str]) -> int:
    page = Path(__file__).with_name("help") / f"{command}.txt"  # of a command whose parser takes seconds to make
    if {"-h", "--help"} & set(rest) and page.is_file():
        print(page.read_text(encoding="utf-8"), end="")
        return 0
    rest = written_out(command, ["--help" if arg in ("-h", "--help-all") else arg for arg in rest])
    if command == "fit":
        require_network(rest)
    return int(resolve_name(f"icnets.cli.{COMMANDS[command][0]}")(rest))


def _unread() -> bool:
    """Whether the reader of our output closed the pipe, as head does; then nothing more is written to it."""
    try:
        print(flush=True)  # other pipes break too, those to workers, and that is an error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
