"""``icnets compare``: basic, IC, IC + WLD and peer units over seeds; one table, one JSON."""

import json
import os
import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from icnets.cli.configuration import FLAG, parse, require_named_code, take_flag
from icnets.cli.parser import Parser
from icnets.comparison.engine import run_comparison
from icnets.comparison.own_images import own_recipe
from icnets.comparison.settings import Settings
from icnets.data.data_module import ImageData
from icnets.support.text import tell


def _options(data: dict[str, Any]) -> list[str]:
    """Arguments of the data as options of the command line."""
    return [f"--data.{name}={json.dumps(value)}" for name, value in data.items()]


def _for_folder(argv: Sequence[str], folder: dict[str, Any]) -> list[str]:
    """The arguments with the recipe's settings for folders right behind the recipe, so that what follows overrides."""
    known = [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    at = known[-1] + (2 if argv[known[-1]] == "--config" else 1) if known else 0
    data = _options(folder.get("data", {}))
    rest = {name: value for name, value in folder.items() if name != "data"}
    return [*argv[:at], "--config", json.dumps(rest), *data, *argv[at:]]


def _with_own_images(argv: Sequence[str]) -> list[str]:
    """The arguments with the short forms written out: a folder in front, --model and --weights.

    Without a recipe, these are those of the recipe for images of one's own.
    """
    early = Parser(add_help=False)
    early.add_argument("-c", "--config", action="append", default=[])
    for name in ("model", "weights", "out"):
        early.add_argument(f"--{name}")
    given, rest = early.parse_known_args(argv)
    root = rest.pop(0) if rest and not rest[0].startswith("-") else None
    settings = {"out": given.out, "data.root": root, "network.name": given.model, "network.weights": given.weights}
    if not given.config and (root is not None or given.model is not None):
        for name in ("--data.root", "--data.mean", "--data.std", "--data.in_chans", "--network.weights"):
            early.add_argument(name)
        seen = {"data.root": root, **{k: v for k, v in vars(early.parse_known_args(rest)[0]).items() if v is not None}}
        images = {name.removeprefix("data."): value for name, value in seen.items() if name.startswith("data.")}
        own = own_recipe(given.model or "resnet18", given.weights or seen.get("network.weights"), images)
        given.config, settings = [json.dumps(own)], {"out": given.out}
    words = [part for file in given.config for part in ("--config", file)]
    return words + [f"--{name}={value}" for name, value in settings.items() if value is not None] + rest


def read_settings(argv: Sequence[str]) -> Settings:
    """The settings; what the command line says holds against the recipe.

    Raises:
        ValueError: what can't be parsed, or ``imports`` without --allow-imports.
    """
    from jsonargparse import ArgumentParser

    own = "icnets compare FOLDER --model NAME --minutes 20 fine-tunes a trained network on images of your own."
    about = f"{__doc__} {own} A recipe's imports need {FLAG}: what they name is imported, so only if you trust it."
    parser = ArgumentParser(prog="icnets compare", description=about, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe, such as recipes/demo.yaml")
    images = {"nested_key": "data", "skip": {"seed"}, "instantiate": False}
    if "--help" in argv:
        parser.add_argument("FOLDER", nargs="?", help="images of your own, as --data.root; needs --model")
        parser.add_argument("--model", help="timm's name, a checkpoint, or code such as my_cnn.py:MyCNN")
        parser.add_argument(
            "--weights", help="file of the weights that it starts from; timm's pretrained ones by default"
        )
        parser.add_class_arguments(ImageData, **images)
    parser.add_argument("--cost_rounds", type=Any, default=None, help=SUPPRESS)  # in recipes of earlier versions
    parser.add_class_arguments(Settings, sub_configs=True, skip={"data"} if "--help" in argv else set())
    typed, (argv, everything) = argv, take_flag(_with_own_images(argv))
    args = parse(parser, argv)
    if args.data.get("root") is not None and args.folder:
        args = parse(parser, _for_folder(argv, dict(args.folder)))
    if args.cost_rounds is not None:
        tell(f"cost_rounds is {args.cost_rounds}, but training steps aren't timed any more; leave it out")
    settings = Settings(**{f.name: args[f.name] for f in fields(Settings)})
    if "kind" not in settings.data:  # the images' options are checked here, those of other kinds by their class
        checker = ArgumentParser(prog="icnets compare", exit_on_error=False)
        checker.add_class_arguments(ImageData, **images)
        parse(checker, _options(settings.data))
    if not everything:
        require_named_code(settings.network.name, typed)
    if everything:
        sys.path.append(os.getcwd())  # so that the folder in which one is can hold what is imported
    elif settings.imports:
        path = next(iter(settings.imports.values()))
        raise ValueError(f"{path} was not imported: importing runs its code; if you trust it, give {FLAG} true")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    argv = sys.argv[1:] if argv is None else list(argv)
    settings = read_settings(argv)
    command = shlex.join(["icnets", "compare", *argv])
    found = run_comparison(settings, command)
    print(f"\n{found}\n")
    print(f"{found.out}/results.json    every number, run and setting; also results.md and checkpoints/")
    if found.stop is not None:
        print(f"{found.stop}: {found.runs} of {found.planned} runs are done; to go on: {command}")
    print(f"{_page(found.out)}    all of it as one page, with curves and images")
    if "kind" not in settings.data and settings.data.get("root") is None:
        print(
            "your own images (DIR/train and DIR/val, or one folder per class in DIR): icnets compare DIR --model NAME"
        )
    return 130 if found.stop == "interrupted" else 0


def _page(folder: Path) -> Path:
    """Writes the report of a comparison."""
    from icnets.comparison.run_files import read_run
    from icnets.report.page import write_report

    write_report(read_run(folder), folder / "report.html")
    return folder / "report.html"
