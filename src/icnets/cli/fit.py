"""Options come from YAML files and, with the last word, from the command line.

They may name classes of icnets, torch, lightning, timm and torchvision; with --allow-imports, those of any package:
what they name is imported, so only if you trust it. Code that --model names on the command line, as my_cnn.py:MyCNN, is
imported too.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from icnets.checkpoint.weights_files import holds_ic_network
from icnets.cli.app import COMMANDS
from icnets.cli.configuration import UNIQUE_KEYS, allowed_imports, of_configuration, require_named_code, take_flag
from icnets.cli.parser import with_hint
from icnets.cli.run_folder import find_checkpoint, run_name, with_configuration_of_run
from icnets.cli.shorthand import MISSING
from icnets.data.data_module import ImageData
from icnets.open_network import starting_config
from icnets.report.run_pictures import SampleBatch, never_fatal, save_mistakes, save_pictures
from icnets.support.files import write_json
from icnets.support.quiet import quiet
from icnets.support.text import first_process
from icnets.training.by_class import ByClass, ValidationCounts, record_of_test
from icnets.training.callbacks import progress_bar
from icnets.training.fitting import TRAINER_DEFAULTS, RunOptions, code_words, result_of
from icnets.training.network import start_statistics
from icnets.training.plan import plan
from icnets.training.run_checkpoints import AtomicCheckpointIO, last_checkpoints
from icnets.training.task import ClassificationTask

_SHORT = (
    " A folder in front is --data.root. --model is short for --model.model, --weights for --model.init_from, "
    "--max-slowdown and --engine for those of --model.ic: as many layers as keep the network within 1.05 of its time."
)
_PARSING = {"allow_abbrev": False, "parser_mode": UNIQUE_KEYS}
_UNTRAINED = "{} needs a trained network: give --name RUN, or --ckpt_path FILE"
_NOT_RESUMABLE = "{} holds weights alone, and fit goes on from --ckpt_path last; or begin from it: --model.init_from"


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.endswith("are required: model.model"):
            command = self.prog.rpartition(" ")[2]
            message = MISSING if command == "fit" else _UNTRAINED.format(command)
        raise ValueError(with_hint(message, self)) from ex


class _RunCLI(LightningCLI):
    """LightningCLI of one command, with everything of a run in RUNS/NAME.

    A checkpoint brings the configuration that its run had.
    """

    def __init__(self, command: str, args: Sequence[str], *, imports: bool) -> None:
        self.command, self.imports, summary = command, imports, COMMANDS[command][1]
        about = f"{summary[0].upper()}{summary[1:]}. {__doc__}{_SHORT if command == 'fit' else ''}"
        super().__init__(
            ClassificationTask,
            ImageData,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": f"icnets {command}", "description": about, **_PARSING},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, as_group=False)
        add = parser.add_argument
        add("--overwrite", type=bool, default=False, help="let fit begin anew in the folder of a run")
        add("--plan", action="store_true", help="fit: print what would run and what is missing, and stop")
        checkpoints = "last or best of the run NAME, or FILE.ckpt, with its run's options; auto: last if it is there"
        add("--ckpt_path", type=str | None, default=None, help=checkpoints)
        for unused in ("output", "target", "weights_only"):  # in configurations of before
            add(f"--{unused}", type=Any, default=None, help=argparse.SUPPRESS)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with of_configuration():
            self.config = chosen = parser.parse_args(with_configuration_of_run(args, trains=self.command == "fit"))
        if not self.imports:
            require_named_code(chosen.model.model, args)
        chosen.name = chosen.name or run_name(chosen, self.command)
        for name, values in start_statistics(chosen.model, chosen.data).items() if chosen.ckpt_path is None else ():
            chosen.data[name] = tuple(values)
        self.run_options = RunOptions(**{f.name: chosen[f.name] for f in fields(RunOptions)})
        self.folder = self.run_options.folder
        given, chosen.ckpt_path = chosen.ckpt_path, find_checkpoint(chosen.ckpt_path, self.folder)
        if self.command == "fit":
            if given is None and not chosen.overwrite:
                self.run_options.require_empty()
            if str(chosen.ckpt_path).endswith(".safetensors"):
                raise ValueError(_NOT_RESUMABLE.format(chosen.ckpt_path))
        elif chosen.ckpt_path is not None:
            _without_sources(chosen.model)
        elif chosen.model.init_from is None and not chosen.model.pretrained:
            raise ValueError(_UNTRAINED.format(self.command))

    def before_instantiate_classes(self) -> None:
        if self.config.plan and self.command == "fit":
            if first_process():
                print(plan(self.config, self.folder))
            sys.exit(0)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = self.config.trainer
        callbacks: list[Callback] = [] if trainer.enable_progress_bar is False else [progress_bar()]
        callbacks += [ByClass()] if self.command == "test" else []
        if self.command == "fit":
            config = yaml.safe_load(self.parser.dump(self.config, skip_none=False)) | {"ckpt_path": None}
            callbacks += self.run_options.callbacks(config, trainer, ValidationCounts(), SampleBatch(self.folder))
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        given = self.config_init.trainer.plugins or []
        kwargs["plugins"] = [AtomicCheckpointIO(), *(given if isinstance(given, list) else [given])]
        if trainer.logger is None:
            kwargs["logger"] = self.run_options.logger() if self.command == "fit" else False
        return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)

    def run(self) -> None:
        """Runs the command."""
        chosen, first, fits = self.config, self.trainer.is_global_zero, self.command == "fit"
        if first and fits:
            if chosen.ckpt_path is not None:
                print(f"going on from {chosen.ckpt_path}", flush=True)
            self.run_options.make_room(self.trainer, self.model)
        if first and self.command == "test":
            print(self.datamodule.protocol(), flush=True)
        try:
            getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, ckpt_path=chosen.ckpt_path)
        except (KeyboardInterrupt, SystemExit) as stop:
            if fits and last_checkpoints(self.folder / "checkpoints"):
                stop.add_note(f"go on by: {self._resumed_by()}")
            raise
        if first and fits:
            save_pictures(self.trainer, self.folder)
            print(result_of(self.trainer, self.folder))
        if first and self.command == "test":
            self._after_test()

    def _resumed_by(self) -> str:
        runs = self.config.runs
        words = ["icnets", "fit", "--name", self.config.name, *(["--runs", runs] if runs != "runs" else [])]
        return shlex.join([*words, "--ckpt_path", "last", *code_words(self.config.model.model)])

    def _after_test(self) -> None:
        tested = next(c for c in vars(self.trainer)["callbacks"] if isinstance(c, ByClass))
        data, checkpoint = self.datamodule, self.config.ckpt_path or self.config.model.init_from
        head = {"checkpoint": checkpoint and str(checkpoint), "protocol": data.protocol().removeprefix("protocol: ")}
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        with never_fatal(self.folder / "test.json") as path:
            write_json(record_of_test(tested, data, metrics, **head), path)
        with never_fatal(self.folder / "mistakes.png") as path:
            save_mistakes(tested.mistakes, data, path)
        print(f"files in {self.folder}: test.json, and the worst mistakes in mistakes.png")


def run(command: str, argv: Sequence[str]) -> int:
    """Runs fit, validate or test; returns 0.

    Raises:
        ValueError, TypeError, OSError: a mistake in the arguments, the files or the images.
    """
    quiet()
    args, everything = take_flag(argv)
    with allowed_imports(everything=everything):
        _RunCLI(command, args, imports=everything).run()
    return 0


fit, validate, test = (partial(run, command) for command in ("fit", "validate", "test"))


def _without_sources(model: Any) -> None:
    """For evaluation the weights come from the checkpoint: what training started from may be gone, or far away."""
    if model.ic is None and isinstance(model.model, str) and (model.pretrained or model.init_from is not None):
        model.ic = starting_config(model.model, trained=True)
        model.ic = None if model.ic is None else Namespace(**model.ic.to_dict())
    if model.init_from is not None and not holds_ic_network(model.init_from):
        model.init_from = None
    model.pretrained, model.teacher = False, None
