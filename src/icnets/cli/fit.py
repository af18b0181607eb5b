"""fit, validate and test: Lightning's command line around our data and task, with one folder per run."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from icnets.cli.app import COMMANDS
from icnets.cli.configuration import UNIQUE_KEYS, allowed_imports, of_configuration, take_flag
from icnets.cli.parser import with_hint
from icnets.cli.run_folder import find_checkpoint, require_empty, run_name, with_configuration_of_run
from icnets.data.data_module import ImageData
from icnets.open_network import holds_ic_network, starting_config
from icnets.support.files import atomic_write, remove_unfinished
from icnets.support.quiet import quiet
from icnets.training.callbacks import ByClass, History, WeightAverage, WeightsExport, progress_bar
from icnets.training.plan import checkpoint_bytes, plan, preflight
from icnets.training.run_checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoints
from icnets.training.task import ClassificationTask
from icnets.unit.layers import IC_LAYERS

_TRAINER_DEFAULTS = {
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "deterministic": "warn",
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # the data module gives each process its own batches
}

_ABOUT = (
    "Options come from YAML files and, with the last word, from the command line. They may name classes of icnets, "
    "torch, lightning, timm and torchvision; with --allow-imports, those of any package: what they name is imported, "
    "so only if you trust it."
)
_PARSING = {"allow_abbrev": False, "parser_mode": UNIQUE_KEYS}
_UNTRAINED = "{} needs a trained network: give --name RUN --ckpt_path best, or --ckpt_path FILE.ckpt"


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.endswith("are required: model.model"):
            command = self.prog.rpartition(" ")[2]
            missing = "model.model is missing; give --model.model or --config"
            message = missing if command == "fit" else _UNTRAINED.format(command)
        raise ValueError(with_hint(message, self)) from ex


class _RunCLI(LightningCLI):
    """LightningCLI of one command, with everything of a run in RUNS/NAME.

    A checkpoint brings the configuration that its run had.
    """

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.command, summary = command, COMMANDS[command][1]
        about = f"{summary[0].upper()}{summary[1:]}. {_ABOUT}"
        super().__init__(
            ClassificationTask,
            ImageData,
            save_config_callback=None,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": f"icnets {command}", "description": about, **_PARSING},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--name", type=str | None, default=None, help="the run, whose files are in RUNS/NAME")
        add("--runs", type=str, default="runs", help="folder of all runs")
        add("--save_every", type=int | None, default=None, help="steps between checkpoints, beside those of each epoch")
        add("--keep", type=int, default=2, help="number of last checkpoints that are kept")
        add("--overwrite", type=bool, default=False, help="let fit begin anew in the folder of a run")
        add("--ema", type=float | None, default=None, help="validate and keep a running average with this decay")
        add("--plan", action="store_true", help="fit: print what would run and what is missing, and stop")
        checkpoints = "last or best of the run NAME, or FILE.ckpt, with its run's options; auto: last if it is there"
        add("--ckpt_path", type=str | None, default=None, help=checkpoints)
        for unused in ("output", "target", "weights_only", "model.check_teacher"):  # in configurations of before
            add(f"--{unused}", type=Any, default=None, help=argparse.SUPPRESS)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with of_configuration():
            self.config = chosen = parser.parse_args(with_configuration_of_run(args))
        chosen.pop("model.check_teacher")  # no argument of the task any more
        chosen.name = chosen.name or run_name(chosen, self.command)
        self.folder = Path(chosen.runs) / chosen.name
        given, chosen.ckpt_path = chosen.ckpt_path, find_checkpoint(chosen.ckpt_path, self.folder)
        if self.command == "fit":
            if given is None and not chosen.overwrite:
                require_empty(self.folder)
        elif chosen.ckpt_path is not None:
            _without_sources(chosen.model)
        elif chosen.model.init_from is None and not chosen.model.pretrained:
            raise ValueError(_UNTRAINED.format(self.command))

    def before_instantiate_classes(self) -> None:
        if self.config.plan and self.command == "fit":
            if os.environ.get("RANK", "0") == "0":
                print(plan(self.config, self.folder))
            sys.exit(0)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = self.config.trainer
        callbacks: list[Callback] = [] if trainer.enable_progress_bar is False else [progress_bar()]
        callbacks += [ByClass()] if self.command == "test" else []
        callbacks += self._callbacks_of_fit() if self.command == "fit" else []
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        given = self.config_init.trainer.plugins or []
        kwargs["plugins"] = [AtomicCheckpointIO(), *(given if isinstance(given, list) else [given])]
        if trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(self.folder, "tensorboard", "") if self.command == "fit" else False
        return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)

    def _callbacks_of_fit(self) -> list[Callback]:
        chosen, checkpoints = self.config, self.folder / "checkpoints"
        callbacks: list[Callback] = [History(self.folder / "history.csv")]
        if chosen.ema is not None:
            callbacks.append(WeightAverage(chosen.ema))
        if chosen.trainer.logger is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if chosen.trainer.enable_checkpointing is not False:
            last = LastCheckpoints(checkpoints, chosen.save_every, chosen.keep)
            callbacks += [WeightsExport(checkpoints), BestCheckpoint(checkpoints), last]
        return [*callbacks, RunFiles(self.parser, self.config, self.folder)]

    def run(self) -> None:
        """Runs the command."""
        if self.trainer.is_global_zero and self.command == "fit":
            self._before_fit()
        if self.trainer.is_global_zero and self.command == "test":
            print(self.datamodule.protocol(), flush=True)
        getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path)
        if self.trainer.is_global_zero and self.command == "fit":
            self._after_fit()

    def _before_fit(self) -> None:
        chosen = self.config
        remove_unfinished(self.folder)
        if chosen.ckpt_path is not None:
            print(f"going on from {chosen.ckpt_path}", flush=True)
        network, optimizer = self.model.network, self.model.optimization.optimizer
        _, needed = checkpoint_bytes(network, optimizer, average=chosen.ema is not None, keep=chosen.keep)
        preflight(self.folder, 0 if chosen.trainer.enable_checkpointing is False else needed)

    def _after_fit(self) -> None:
        rows = next(c.rows for c in vars(self.trainer)["callbacks"] if isinstance(c, History))
        if best := max((row for row in rows if "val/top1" in row), key=lambda row: row["val/top1"], default=None):
            print(f"best val/top1 {best['val/top1']:.2%} in epoch {best['epoch']} of {len(rows)}")
        kept = self.folder / "checkpoints" / "best.ckpt"
        following = f"; next: icnets test --ckpt_path {shlex.quote(str(kept))}" if kept.is_file() else ""
        print(f"files in {self.folder}{following}")


def run(command: str, argv: Sequence[str]) -> int:
    """Runs fit, validate or test; returns 0.

    Raises:
        ValueError, TypeError, OSError: a mistake in the arguments, the files or the images.
    """
    quiet()
    args, everything = take_flag(argv)
    with allowed_imports(everything=everything):
        _RunCLI(command, args).run()
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


class RunFiles(Callback):
    """Says what is trained on what; writes config.yaml, and unreadable.txt with the images that could not be read.

    The configuration has what was chosen by default, and no checkpoint to resume. It waits until a checkpoint is
    loaded: options that a checkpoint refuses would spoil the configuration that its run goes on with.
    """

    def __init__(self, parser: Any, config: Any, folder: Path) -> None:
        self.parser, self.config, self.folder, self.unreadable = parser, config, folder, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        require_one_step(trainer)
        if not trainer.is_global_zero:
            return
        print(_announcement(trainer, pl_module), flush=True)
        if trainer.fast_dev_run:
            return
        config, data = self.config.clone(), trainer.datamodule
        config.ckpt_path = None
        config.data.batch_size, config.data.eval_batch_size = data.batch_size, data.eval_batch_size
        config.model.lr, config.model.new_lr = pl_module.optimization.lr, pl_module.optimization.new_lr
        config.trainer.gradient_clip_val = pl_module.gradient_clip_val
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "config.yaml") as temporary:  # a process that is started again may read it
            self.parser.save(config, temporary, skip_none=False, overwrite=True, multifile=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        names, file = trainer.datamodule.unreadable(), self.folder / "unreadable.txt"
        if len(names) > self.unreadable and trainer.is_global_zero:
            with atomic_write(file) as unfinished:
                unfinished.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            print(f"{len(names)} images can't be read and were skipped so far: {file}", flush=True)
        self.unreadable = len(names)


def _announcement(trainer: Any, task: ClassificationTask) -> str:
    network = task.network
    units = sum(isinstance(m, IC_LAYERS) for m in network.modules())
    kind = f"{type(network).__name__} with {units} IC units" if units else f"basic {type(network).__name__}"
    sizes = ", ".join(f"{trainer.datamodule.size(split):,} {split}" for split in ("train", "val", "test"))
    lr = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    step = f"{task.global_batch} images a step, {steps:,} steps an epoch, lr {lr:.4g}"
    if task.fine_tunes:
        new = f", times {task.optimization.new_lr:g} for what IC adds" if units else ""
        step += f" (fine-tuning: a tenth of the usual{new}, gradients clipped to {task.gradient_clip_val:g})"
    return f"{kind}, {sum(p.numel() for p in network.parameters()):,} parameters; images: {sizes}; {step}"


def require_one_step(trainer: Any) -> None:
    """Raises ValueError where hosts would go on at different steps, having found different checkpoints."""
    step = trainer.strategy.broadcast(trainer.global_step)
    if step != trainer.global_step:
        what = f"process {trainer.global_rank} would go on at step {trainer.global_step} and process 0 at step {step}"
        raise ValueError(f"{what}; give --runs a folder that all hosts share")
