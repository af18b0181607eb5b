"""fit, validate, test and predict: Lightning's command line around our data and task, with one folder per run."""

import csv
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from icnets.data.data_module import ImageData
from icnets.support.files import atomic_write, remove_unfinished
from icnets.support.quiet import quiet
from icnets.support.text import of_configuration
from icnets.training.allowed_imports import allowed_imports, take_flag
from icnets.training.by_class import ByClass
from icnets.training.callbacks import History, WeightAverage, WeightsExport, progress_bar
from icnets.training.engine import precision_options
from icnets.training.network import holds_ic_network, starting_config
from icnets.training.plan import checkpoint_bytes, plan, preflight
from icnets.training.run_checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoints,
    last_checkpoints,
    newest_whole,
    read_checkpoint,
)
from icnets.training.task import ClassificationTask
from icnets.unit.layers import IC_LAYERS

__all__ = ["ICNetsCLI", "run"]

_TRAINER_DEFAULTS = {
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "deterministic": "warn",
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # the data module gives each process its own batches
}

_OF_A_RUN = ("best", "last", "auto")  # checkpoints by their part in a run
_FINISHED = ("best.ckpt", "best.safetensors", "last.safetensors")  # beside those of the last steps
_UNTRAINED = "{} needs a trained network: give --name RUN --ckpt_path best, or --ckpt_path FILE.ckpt"


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message) from ex


class _SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder, with what was chosen by default, without a checkpoint to resume.

    Once a checkpoint is loaded, that is: options that it refuses would spoil the configuration that it goes on with.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pass

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        config = self.config.clone()
        folder = Path(config.runs) / config.name
        config.ckpt_path = None
        config.data.batch_size, config.data.eval_batch_size = (
            trainer.datamodule.batch_size,
            trainer.datamodule.eval_batch_size,
        )
        config.model.lr, config.trainer.gradient_clip_val = pl_module.optimization.lr, pl_module.gradient_clip_val
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "config.yaml") as temporary:  # a process that is started again may read it
            self.parser.save(config, temporary, skip_none=False, overwrite=True, multifile=False)


class _Announcement(Callback):
    """Says what is trained on what, once all is built and the first step is near."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        network = pl_module.network
        units = sum(isinstance(m, IC_LAYERS) for m in network.modules())
        kind = f"{type(network).__name__} with {units} IC units" if units else f"basic {type(network).__name__}"
        sizes = ", ".join(f"{trainer.datamodule.size(split):,} {split}" for split in ("train", "val", "test"))
        count = sum(p.numel() for p in network.parameters())
        lr = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        step = f"{pl_module.global_batch} images a step, {steps:,} steps an epoch, lr {lr:.4g}"
        if pl_module.fine_tunes:
            step += f" (fine-tuning: a tenth of the usual, gradients clipped to {pl_module.gradient_clip_val:g})"
        _require_one_step(trainer)
        if trainer.is_global_zero:
            print(f"{kind}, {count:,} parameters; images: {sizes}; {step}", flush=True)


class _UnreadableImages(Callback):
    """After every epoch, says which images could not be read so far, in the run's folder and in a line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        names = trainer.datamodule.unreadable()
        if len(names) > self.known and trainer.is_global_zero:
            with atomic_write(self.file) as unfinished:
                unfinished.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            print(f"{len(names)} images can't be read and were skipped so far: {self.file}", flush=True)
        self.known = len(names)


def _require_one_step(trainer: Any) -> None:
    """ValueError where hosts go on at different steps, since each found other checkpoints: they would wait forever."""
    step = trainer.strategy.broadcast(trainer.global_step)
    if step != trainer.global_step:
        raise ValueError(
            f"process {trainer.global_rank} would go on at step {trainer.global_step} and process 0 at step {step}; "
            "give --runs a folder that all hosts share"
        )


class ICNetsCLI(LightningCLI):
    """LightningCLI whose runs keep everything in RUNS/NAME; a checkpoint brings the configuration it was made with."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="name of the run: its files are in RUNS/NAME")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--save_every",
            type=int | None,
            default=None,
            help="checkpoint every so many steps too, not only each epoch",
        )
        parser.add_argument("--keep", type=int, default=2, help="number of last checkpoints that are kept")
        parser.add_argument("--overwrite", type=bool, default=False, help="let fit begin anew in the folder of a run")
        parser.add_argument("--target", type=float | None, default=None, help="say when val/top1 first reached this")
        parser.add_argument(
            "--ema", type=float | None, default=None, help="validate and keep a running average with this decay"
        )
        parser.add_argument(
            "--output", type=Path | None, default=None, help="predict: CSV file; RUNS/NAME/predictions.csv"
        )
        parser.add_argument("--plan", action="store_true", help="fit: print what would run, and stop")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with of_configuration():
            self.config = parser.parse_args(_with_config_of_run(list(args)))
        chosen = self.config[self.config.subcommand]
        if chosen.name is None:
            chosen.name = _name(chosen, self.config.subcommand)
        self.folder = Path(chosen.runs) / chosen.name
        given, chosen.ckpt_path = chosen.ckpt_path, _find_checkpoint(chosen.ckpt_path, self.folder)
        if self.config.subcommand != "fit":
            _require_trained(self.config.subcommand, chosen)
        elif given is None and not chosen.overwrite:
            _require_empty(self.folder)
        if self.config.subcommand != "fit" and chosen.ckpt_path is not None:
            _without_sources(chosen.model)

    def before_instantiate_classes(self) -> None:
        chosen = self.config[self.config.subcommand]
        if chosen.plan and self.config.subcommand == "fit":
            if os.environ.get("RANK", "0") == "0":
                print(plan(chosen, self.folder))
            sys.exit(0)

    def before_fit(self) -> None:
        if self.trainer.is_global_zero:
            remove_unfinished(self.folder)
            if self.config_init.fit.ckpt_path is not None:
                print(f"going on from {self.config_init.fit.ckpt_path}", flush=True)
            chosen, network, optimizer = self.config_init.fit, self.model.network, self.model.optimization.optimizer
            _, needed = checkpoint_bytes(network, optimizer, average=chosen.ema is not None, keep=chosen.keep)
            preflight(self.folder, 0 if chosen.trainer.enable_checkpointing is False else needed)

    def before_test(self) -> None:
        if self.trainer.is_global_zero:
            print(self.datamodule.protocol(), flush=True)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        chosen = self.config_init[self.subcommand]
        callbacks: list[Callback] = []
        if chosen.trainer.enable_progress_bar is not False:
            callbacks.append(progress_bar())
        if self.subcommand == "test":
            callbacks.append(ByClass())
        if self.subcommand == "fit":
            if chosen.target is not None and not 0 < chosen.target <= 1:
                raise ValueError(f"target is {chosen.target}; it must be an accuracy between 0 and 1, e.g. 0.95")
            callbacks += [_Announcement(), History(self.folder / "history.csv")]
            callbacks.append(_UnreadableImages(self.folder / "unreadable.txt"))
            if chosen.ema is not None:
                callbacks.append(WeightAverage(chosen.ema))
            if chosen.trainer.logger is not False:
                callbacks.append(LearningRateMonitor(logging_interval="step"))
            if chosen.trainer.enable_checkpointing is not False:
                last = LastCheckpoints(self.folder / "checkpoints", chosen.save_every, chosen.keep)
                callbacks += [WeightsExport(), _best(self.folder), last]
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks, "plugins": [AtomicCheckpointIO()]}
        kwargs |= precision_options(chosen.trainer.precision, chosen.trainer.accelerator, chosen.trainer.strategy)
        if chosen.trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(self.folder, "tensorboard", "") if self.subcommand == "fit" else False
        return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)

    def after_fit(self) -> None:
        if not self.trainer.is_global_zero:
            return
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]
        rows = next(c.rows for c in callbacks if isinstance(c, History))
        if best := max((row for row in rows if "val/top1" in row), key=lambda row: row["val/top1"], default=None):
            print(f"best val/top1 {best['val/top1']:.2%} in epoch {best['epoch']} of {len(rows)}")
        if self.config_init.fit.target is not None:
            print(_target_line(rows, self.config_init.fit.target))
        best_there = (self.folder / "checkpoints" / "best.ckpt").is_file()
        runs = "" if self.folder.parent == Path("runs") else f" --runs {shlex.quote(str(self.folder.parent))}"
        name = shlex.quote(self.folder.name)
        following = f"; next: icnets test{runs} --name {name} --ckpt_path best" if best_there else ""
        print(f"files in {self.folder}{following}")

    def predict(self, **kwargs: Any) -> None:
        """Lightning's predict, written to a CSV file: image, class and the probability of each class."""
        batches: Any = self.trainer.predict(**kwargs)
        probabilities = torch.cat([batch.probabilities for batch in batches])
        names, classes = self.datamodule.predict_names(), self.datamodule.class_names
        output = self.config_init.predict.output or self.folder / "predictions.csv"
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", *classes])
            for name, row in zip(names, probabilities.tolist(), strict=True):
                best = max(range(len(row)), key=row.__getitem__)
                writer.writerow([name, classes[best], *(f"{p:.6f}" for p in row)])
        print(f"{len(names)} predictions in {output}")


def run(argv: Sequence[str]) -> None:
    """Run one of the four subcommands, e.g. ``run(["fit", "--config", "run.yaml"])``.

    Raises:
        ValueError, TypeError, OSError: a mistake in the arguments, the files or the images.
    """
    quiet()
    args, everything = take_flag(argv)
    with allowed_imports(everything=everything):
        ICNetsCLI(
            ClassificationTask,
            ImageData,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": "icnets"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )


def _option(args: Sequence[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``; the last one counts."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def _with_config_of_run(args: list[str]) -> list[str]:
    """A checkpoint of a run is used with that run's configuration, unless the arguments bring one."""
    path, name = _option(args, "ckpt_path"), _option(args, "name")
    if any(arg.split("=")[0] in ("-c", "--config") for arg in args) or "--help" in args:
        return args
    if path is None:
        if args[0] != "fit" and not any(_option(args, f"model.{key}") for key in ("init_from", "pretrained")):
            raise ValueError(_UNTRAINED.format(args[0]))
        return args
    if path in _OF_A_RUN:
        if name is None:
            raise ValueError(f"ckpt_path is {path!r}, of which run? Give --name too")
        folder = Path(_option(args, "runs") or "runs") / name
        if not folder.is_dir() and path != "auto":
            raise ValueError(f"there is no run {folder}; check --name and --runs")
    else:
        folder = Path(path).parent.parent
    config = folder / "config.yaml"
    if not config.is_file():
        return args
    # A run may have been moved since: it is where its checkpoint is, not where its configuration says.
    return [args[0], "--config", str(config), "--runs", str(folder.parent), "--name", folder.name, *args[1:]]


def _name(chosen: Any, subcommand: str) -> str:
    if chosen.ckpt_path in _OF_A_RUN:
        raise ValueError(f"ckpt_path is {chosen.ckpt_path!r}, of which run? Give --name too")
    if subcommand != "fit":
        return subcommand
    model = chosen.model.model
    label = model if isinstance(model, str) else str(model.get("class_path", "model")).rpartition(".")[2]
    label = re.sub(r"[^\w.-]", "_", label)
    return next(n for i in range(1, sys.maxsize) if not (Path(chosen.runs) / (n := f"{label}-{i}")).exists())


def _find_checkpoint(given: Any, folder: Path) -> str | None:
    """The path of the checkpoint, which is made sure to be a whole one; None to begin anew."""
    if given is None:
        return None
    if given in ("last", "auto"):
        path, problems = newest_whole(folder / "checkpoints")
        for problem in problems:
            print(f"{problem}; going on from {path or 'the beginning'}", file=sys.stderr, flush=True)
        if path is None and (given == "last" or problems):
            raise ValueError(
                f"there is no whole checkpoint step-*.ckpt in {folder / 'checkpoints'}; begin anew without --ckpt_path"
            )
        return None if path is None else str(path)
    path = folder / "checkpoints" / "best.ckpt" if given == "best" else Path(given)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check ckpt_path, and the run's name")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} holds weights alone; give the .ckpt beside it, or start from it by model.init_from")
    read_checkpoint(path)
    return str(path)


def _require_trained(subcommand: str, chosen: Any) -> None:
    if chosen.ckpt_path is None and chosen.model.init_from is None and not chosen.model.pretrained:
        raise ValueError(_UNTRAINED.format(subcommand))


def _require_empty(folder: Path) -> None:
    """ValueError where a run would be replaced, also one of which only the finished weights were kept."""
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*") if path.name in _FINISHED)
    if last_checkpoints(folder / "checkpoints"):
        what, way = "a run already", "resume it with --ckpt_path last, "
    elif kept:
        what, way = f"trained weights already ({', '.join(kept)})", ""
    else:
        return
    raise ValueError(f"{folder} holds {what}; give another --name, {way}or --overwrite true")


def _without_sources(model: Any) -> None:
    """For evaluation the weights come from the checkpoint: what training started from may be gone, or far away."""
    if model.ic is None and isinstance(model.model, str) and (model.pretrained or model.init_from is not None):
        model.ic = starting_config(model.model, trained=True)
        model.ic = None if model.ic is None else Namespace(**model.ic.to_dict())
    if model.init_from is not None and not holds_ic_network(model.init_from):
        model.init_from = None
    model.pretrained, model.teacher = False, None


def _best(folder: Path) -> BestCheckpoint:
    return BestCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor="val/top1",
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _target_line(rows: list[dict[str, float]], target: float) -> str:
    """When the validation accuracy first reached a target, by the rows of a run's history."""
    row = next((row for row in rows if row.get("val/top1", 0.0) >= target), None)
    if row is None:
        return f"{target:.2%} was not reached"
    return f"{target:.2%} was reached in epoch {row['epoch']}, after {row['seconds']:.1f} s"
