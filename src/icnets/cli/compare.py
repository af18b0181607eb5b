"""``icnets compare``: basic, IC, IC + WLD and peer units over seeds; one table, one JSON."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from icnets.cli.configuration import FLAG, parse, require_named_code, take_flag
from icnets.cli.shorthand import written_out
from icnets.comparison.engine import run_comparison
from icnets.comparison.own_images import own_recipe
from icnets.comparison.run_files import read_run
from icnets.comparison.settings import Settings
from icnets.data.data_module import ImageData
from icnets.report.page import write_report

_IMAGES: dict[str, Any] = {"nested_key": "data", "skip": {"seed"}, "instantiate": False}


def _options(data: dict[str, Any]) -> list[str]:
    """Arguments of the data as options of the command line."""
    return [f"--data.{name}={json.dumps(value)}" for name, value in data.items()]


def _parser(*, described: bool) -> ArgumentParser:
    """The parser of the settings; where it is to be ``described`` by --help, with the options of the images."""
    short = "icnets compare FOLDER --model NAME --minutes 20 fine-tunes a trained network on images of your own."
    short += " --max-slowdown 1.05 converts as many layers as keep within 1.05 of the basic network's time."
    about = f"{__doc__} {short} A recipe's imports need {FLAG}: what they name is imported, so only if you trust it."
    parser = ArgumentParser(prog="icnets compare", description=about, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe, such as recipes/demo.yaml")
    if described:
        parser.add_argument("FOLDER", nargs="?", help="images of your own, as --data.root; needs --model")
        parser.add_argument("--model", help="timm's name, a checkpoint, or code such as my_cnn.py:MyCNN")
        start = "file of the weights that it starts from; timm's pretrained ones by default"
        parser.add_argument("--weights", help=start)
        parser.add_class_arguments(ImageData, **_IMAGES)
    parser.add_class_arguments(Settings, sub_configs=True, skip={"data"} if described else set())
    return parser


def read_settings(argv: Sequence[str]) -> Settings:
    """The settings; what the command line says holds against the recipe.

    Raises:
        ValueError: what can't be parsed, or ``imports`` without --allow-imports.
    """
    parser = _parser(described="--help" in argv)
    typed, (argv, everything) = argv, take_flag(written_out("compare", argv))
    args = parse(parser, argv)
    if "--config" not in argv and any(word.startswith(("--data.root", "--network.name")) for word in argv):
        own = own_recipe(args.network.name, args.network.weights, args.data)
        data, name = _options(own.pop("data")), own["network"]["name"]  # a checkpoint's, where it names one
        args = parse(parser, ["--config", json.dumps(own), *data, *argv, "--network.name", name])
    settings = Settings(**{f.name: args[f.name] for f in fields(Settings)})
    if "kind" not in settings.data:  # the images' options are checked here, those of other kinds by their class
        checker = ArgumentParser(prog="icnets compare", exit_on_error=False)
        checker.add_class_arguments(ImageData, **_IMAGES)
        parse(checker, _options(settings.data))
    if everything:
        sys.path.append(os.getcwd())  # so that the folder in which one is can hold what is imported
        return settings
    require_named_code(settings.network.name, typed)
    for path in settings.imports.values():
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
    write_report(read_run(found.out), page := found.out / "report.html")
    print(f"{page}    all of it as one page, with curves and images")
    return 130 if found.stop == "interrupted" else 0
