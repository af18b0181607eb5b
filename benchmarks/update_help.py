"""Writes the help of the commands whose parsers take seconds to make into ``src/icnets/cli/help``, from the parsers.

Of options by the hundred, a page has the chosen ones, each with its first sentence; ``--help-all`` has the rest.

usage: update_help.py
"""

import argparse
import contextlib
import io
import re
import textwrap
from pathlib import Path
from unittest import mock

from icnets.cli.app import main

PAGES = Path(__file__).resolve().parent.parent / "src" / "icnets" / "cli" / "help"
_EVALUATION = (
    "name runs ckpt_path config data.root data.batch_size data.workers data.crop_pct data.interpolation "
    "trainer.accelerator trainer.devices trainer.precision"
)
# The options on a page; None: all that there are.
CHOSEN: dict[str, str | None] = {
    "fit": "config name runs plan ckpt_path save_every keep ema overwrite print_config "
    "model.model model.ic model.pretrained model.init_from model.teacher model.optimizer model.lr model.new_lr "
    "model.lr_batch model.weight_decay model.schedule model.warmup model.loss model.compile "
    "data.root data.image_size data.in_chans data.batch_size data.workers "
    "data.max_unreadable data.auto_augment data.mixup data.cutmix "
    "trainer.max_epochs trainer.accelerator trainer.devices trainer.num_nodes trainer.strategy trainer.precision",
    "validate": _EVALUATION,
    "test": _EVALUATION,
    "compare": "model weights minutes max_slowdown engine config out lines seeds methods workers threads accelerator "
    "prune data.root data.image_size data.in_chans data.batch_size network.name network.options "
    "training.epochs training.lr training.extra_epochs wld.temperature",
    "predict": None,
    "report": None,
    "profile": None,
    "export": None,
}
_INDENT = 34


def page(command: str) -> str:
    """What ``icnets COMMAND --help`` prints."""
    printed = mock.patch.object(argparse.ArgumentParser, "print_help", autospec=True)
    with printed as shown, contextlib.redirect_stdout(io.StringIO()):
        assert main([command, "--help-all"]) == 0
    parser, chosen = shown.call_args.args[0], CHOSEN[command]
    with mock.patch.dict("os.environ", COLUMNS="120"):
        return parser.format_help() if chosen is None else _chosen_options(parser, command, chosen.split())


def _chosen_options(parser: argparse.ArgumentParser, command: str, chosen: list[str]) -> str:
    actions = {option: action for action in parser._actions for option in action.option_strings}
    lines = [
        f"usage: icnets {command} [OPTIONS]",
        "",
        *textwrap.wrap(_plain(parser.description), 120, break_on_hyphens=False),
        "",
    ]
    for name in chosen:
        option = f"--{name}"
        start = "  " + " ".join(filter(None, (option, _value(actions[option]))))
        text = textwrap.wrap(_first_sentence(actions[option]), 120 - _INDENT)
        if len(start) > _INDENT - 2:
            lines.append(start)
            start = ""
        lines += [f"{start:<{_INDENT}}{text[0]}", *(" " * _INDENT + line for line in text[1:])]
    lines.append(f"{'  --help-all':<{_INDENT}}every option there is")
    return "\n".join(lines) + "\n"


def _value(action: argparse.Action) -> str:
    return "" if action.nargs == 0 else str(action.metavar or action.dest.rpartition(".")[2].upper())


def _first_sentence(action: argparse.Action) -> str:
    text, default = re.split(r"\. (?=[A-Z])", _plain(action.help))[0].removesuffix("."), action.default
    known = isinstance(default, int | float | str | Path) and not isinstance(default, bool) and str(default)
    return f"{text} (default: {default})" if known and known != argparse.SUPPRESS and "default" not in text else text


def _plain(text: str | None) -> str:
    """``text`` without its markup, such as that of a docstring, in one line."""
    return re.sub(r"``|:\w+:(?=`)|`", "", " ".join(str(text).split()))


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name in CHOSEN:
        (PAGES / f"{name}.txt").write_text(page(name), encoding="utf-8")
