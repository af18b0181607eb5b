"""What commands understand in short: ``icnets fit photos --model resnet18 --weights start.pth``."""

import os
from collections.abc import Sequence

from icnets.cli.parser import Parser

_TASK = {"--model": "--model.model", "--weights": "--model.init_from"}
_BUDGET = {"--max-slowdown": "--model.ic.max_slowdown", "--engine": "--model.ic.engine"}
_COMPARED = {"--model": "--network.name", "--weights": "--network.weights", "--max-slowdown": "--max_slowdown"}
_SHORT = {"fit": {**_TASK, **_BUDGET}, "validate": _TASK, "test": _TASK, "compare": _COMPARED}
_TRAINED = ("--weights", "--model.init_from", "--model.pretrained")
_FOLDER_FIRST = ("fit", "compare")
MISSING = "which network? Give --model NAME, such as resnet18 or my_cnn.py:MyCNN, or --config FILE"
_NAME_IT = ("--model.model", "--config", "--ckpt_path", "--help", "--print_config")


def written_out(command: str, args: Sequence[str]) -> list[str]:
    """The arguments by their long names, a folder in front as ``--data.root``.

    Configurations go first: the parser lets the later one win, and options outrank files.

    Example:
        >>> written_out("fit", ["photos", "--model", "resnet18", "--config", "a.yaml"])
        ['--config', 'a.yaml', '--data.root', 'photos', '--model.model', 'resnet18']
    """
    early = Parser(add_help=False)
    early.add_argument("-c", "--config", action="append", default=[])
    found, rest = early.parse_known_args(args)
    words = [part for file in found.config for part in ("--config", file)]
    if command == "fit" and any(w.startswith("--max-slowdown") for w in rest):  # as a name with ic_ starts
        trained = any(word.startswith(_TRAINED) for word in rest)
        words += ["--model.ic.warm_start", "gain"] if trained else []
    if command in _FOLDER_FIRST and rest and not rest[0].startswith("-"):
        words.append("--data.root")
    for word in rest:
        name, equals, value = word.partition("=")
        words.append(f"{_SHORT.get(command, {}).get(name, name)}{equals}{value}")
    return words


def require_network(args: Sequence[str]) -> None:
    """Raises ValueError where fit is told no network, which is said before anything is imported."""
    named = any(word.startswith(_NAME_IT) or ".help" in word for word in args)
    if not named and "JSONARGPARSE_DEFAULT_ENV" not in os.environ:
        raise ValueError(MISSING)
