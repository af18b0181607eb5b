"""From the words of a command line to a run's folder, its configuration and its checkpoint."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icnets.cli.parser import Parser
from icnets.support.named_code import names_code
from icnets.support.text import first_process
from icnets.training.fitting import free_name
from icnets.training.run_checkpoints import AtomicCheckpointIO, newest_whole

_OF_A_RUN = ("best", "last", "auto")  # checkpoints by their part in a run
_NAMELESS = "ckpt_path is {!r}, of which run? Give --name too"


def with_configuration_of_run(args: Sequence[str], *, trains: bool) -> list[str]:
    """The arguments, and before them the configuration of the run whose checkpoint they name, unless they bring one.

    Without ``trains``, a run that is named alone, or with its code, is meant with its best weights.
    """
    early = Parser(add_help=False)
    for name in ("ckpt_path", "name", "runs", "config", "model.model"):
        early.add_argument(f"--{name}")
    given = early.parse_known_args(args)[0]
    other = given.ckpt_path or given.config or not names_code(vars(given)["model.model"] or "my:code")
    if not (trains or given.name is None or other):
        given.ckpt_path, args = "best", [*args, "--ckpt_path", "best"]
    if given.ckpt_path is None or given.config is not None or "--help" in args:
        return list(args)
    folder = Path(given.ckpt_path).parent.parent
    if given.ckpt_path in _OF_A_RUN:
        if given.name is None:
            raise ValueError(_NAMELESS.format(given.ckpt_path))
        folder = Path(given.runs or "runs") / given.name
        if not folder.is_dir() and given.ckpt_path != "auto":
            raise ValueError(f"there is no run {folder}; check --name and --runs")
    config = folder / "config.yaml"
    if not config.is_file():
        return list(args)
    # A run may have been moved since: it is where its checkpoint is, not where its configuration says.
    return ["--config", str(config), "--runs", str(folder.parent), "--name", folder.name, *args]


def run_name(chosen: Any, command: str) -> str:
    """The name of a run that was given none: for fit, the network's with the first number that is free."""
    if chosen.ckpt_path in _OF_A_RUN:
        raise ValueError(_NAMELESS.format(chosen.ckpt_path))
    if command != "fit":
        return command
    model = chosen.model.model
    label = model if isinstance(model, str) else str(model.get("class_path", "model")).rpartition(".")[2]
    return free_name(re.sub(r"[^\w.-]", "_", label.rpartition(":")[2]), chosen.runs)


def find_checkpoint(given: Any, folder: Path) -> str | None:
    """The path of the checkpoint ``given`` of the run in ``folder``, once it was read whole; None to begin anew."""
    if given is None:
        return None
    checkpoints = folder / "checkpoints"
    if given in ("last", "auto"):
        path, problems = newest_whole(checkpoints)
        for problem in problems if first_process() else ():
            print(f"{problem}; going on from {path or 'the beginning'}", file=sys.stderr, flush=True)
        if path is None and (given == "last" or problems):
            what = f"there is no whole checkpoint step-*.ckpt in {checkpoints}"
            raise ValueError(f"{what}; begin anew without --ckpt_path")
        return None if path is None else str(path)
    path = Path(given)
    if given == "best":
        kept = [file for kind in ("safetensors", "ckpt") if (file := checkpoints / f"best.{kind}").is_file()]
        path = kept[0] if kept else checkpoints / "best.safetensors"
    AtomicCheckpointIO().load_checkpoint(path)
    return str(path)
