"""The program ``icnets``. Heavy imports wait until a command needs them, so that help and mistakes answer at once."""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from icnets.cli.help import COMMAND_HELP, HELP
from icnets.support.text import one_line

__all__ = ["main"]

COMMANDS = [*COMMAND_HELP, "convert"]

# Modules whose ``main`` takes the arguments behind the command; what is neither here nor below is Lightning's.
_PROGRAMS = {
    "build": "icnets.cli.build",
    "compare": "icnets.compare.comparison",
    "convert": "icnets.cli.convert",
    "data": "icnets.cli.data",
    "export": "icnets.cli.export",
    "hub": "icnets.cli.hub",
    "predict": "icnets.cli.predict",
    "profile": "icnets.cli.profile",
    "report": "icnets.cli.report",
    "study": "icnets.cli.study",
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
    rest = ["--help" if arg == "--help-all" else arg for arg in rest]
    if command in _PROGRAMS:
        return int(import_module(_PROGRAMS[command]).main(rest))
    from icnets.cli.fit import run

    run([command, *rest])
    return 0


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
