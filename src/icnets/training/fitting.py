"""A training with everything of it in a folder: the callbacks that write there, and what came of it."""

import math
import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from icnets.support.files import atomic_write, remove_unfinished
from icnets.support.named_code import names_code
from icnets.support.text import counted, few, tell
from icnets.training.callbacks import History, Patience, WeightAverage, WeightsExport
from icnets.training.plan import checkpoint_bytes, preflight
from icnets.training.run_checkpoints import LastCheckpoints
from icnets.training.task import ClassificationTask
from icnets.unit.layers import IC_LAYERS

TRAINER_DEFAULTS = {
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "deterministic": "warn",
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # the data module gives each process its own batches
}


# The folder.


@dataclass(frozen=True)
class RunOptions:
    """A run's place, what it keeps there, and when it ends early.

    Args:
        name: the run, whose files are in RUNS/NAME
        runs: folder of all runs
        save_every: steps between checkpoints, beside those of each epoch
        keep: number of last checkpoints that are kept, to resume from
        patience: end after so many epochs without a better val/top1
        ema: validate and keep a running average with this decay
    """

    name: str | None = None
    runs: str = "runs"
    save_every: int | None = None
    keep: int = 1
    patience: int | None = None
    ema: float | None = None

    @property
    def folder(self) -> Path:
        """The run's folder. Raises ValueError for a name that leads out of ``runs``."""
        path = Path(str(self.name))
        if path.is_absolute() or ".." in path.parts or not path.parts:
            what = f"name is {self.name!r}, which isn't below {self.runs}"
            raise ValueError(f"{what}; give a plain --name, and --runs DIR for the rest")
        return Path(self.runs) / path

    def require_empty(self) -> None:
        """Raises ValueError where a run would be replaced, also one of which only the finished weights were kept."""
        checkpoints = self.folder / "checkpoints"
        if kept := sorted(path.name for path in checkpoints.glob("*.*") if path.suffix != ".tmp"):
            way = "give another --name, resume it with --ckpt_path last, or begin anew with --overwrite true"
            raise ValueError(f"{self.folder} holds a run already ({few(kept)}); {way}")

    def make_room(self, trainer: Any, task: ClassificationTask) -> None:
        """Before training, in the first process: raises ValueError where the folder can't take what will be written."""
        remove_unfinished(self.folder)
        optimizer, average = task.optimization.optimizer, self.ema is not None
        _, needed = checkpoint_bytes(task.network, optimizer, average=average, keep=self.keep)
        preflight(self.folder, needed if any(isinstance(c, LastCheckpoints) for c in trainer.callbacks) else 0)

    def logger(self) -> TensorBoardLogger:
        """What logs a training's metrics where nothing else is asked for."""
        return TensorBoardLogger(self.folder, "tensorboard", "")

    def callbacks(self, config: dict[str, Any], trainer: Any, *more: Callback) -> list[Callback]:
        """What writes a training's files into the folder.

        Args:
            config: the options by group, which :func:`found_values` complete.
            trainer: the trainer's options by name, of which logger and enable_checkpointing may be False.
            *more: callbacks that draw.
        """
        there = self.folder / "checkpoints"
        callbacks: list[Callback] = [History(self.folder / "history.csv"), *more]
        if self.ema is not None:
            callbacks.append(WeightAverage(self.ema))
        if trainer.get("logger") is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if trainer.get("enable_checkpointing") is not False:
            callbacks += [WeightsExport(there), LastCheckpoints(there, self.save_every, self.keep)]
        if self.patience is not None:
            callbacks.append(Patience(self.patience))
        return [*callbacks, _RunFiles(self.folder, config)]


def free_name(label: str, runs: str | Path) -> str:
    """``label`` with the first number that no run has."""
    return next(n for i in count(1) if not (Path(runs) / (n := f"{label}-{i}")).exists())


# Training.


def found_values(trainer: Any, task: ClassificationTask) -> dict[str, dict[str, Any]]:
    """Options that a training chose itself where they were left out, by group; its configuration has them."""
    data, chosen = trainer.datamodule, task.optimization
    ic = {} if task.chosen_ic is None else {"ic": task.chosen_ic.to_dict()}
    return {
        "data": {"batch_size": data.batch_size, "eval_batch_size": data.eval_batch_size},
        "model": {"lr": chosen.lr, "new_lr": chosen.new_lr, **ic},
        "trainer": {"gradient_clip_val": task.gradient_clip_val},
    }


class _RunFiles(Callback):
    """Says what is trained on what; writes config.yaml, and unreadable.txt with the images that could not be read.

    It waits until a checkpoint is loaded: options that a checkpoint refuses would spoil the configuration that its run
    goes on with.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config, self.unreadable = folder, config, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        require_one_step(trainer)
        if not trainer.is_global_zero:
            return
        print(_announcement(trainer, pl_module), flush=True)
        if not trainer.fast_dev_run:
            for group, values in found_values(trainer, pl_module).items():
                self.config[group] |= values
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / "config.yaml") as temporary:  # a process that starts again may read it
                temporary.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        names: list[str] = getattr(trainer.datamodule, "unreadable", list)()
        file = self.folder / "unreadable.txt"
        if len(names) > self.unreadable and trainer.is_global_zero:
            with atomic_write(file) as unfinished:
                unfinished.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            print(f"{counted(len(names), 'image')} skipped so far that can't be read: {file}", flush=True)
        self.unreadable = len(names)


def _announcement(trainer: Any, task: ClassificationTask) -> str:
    network = task.network
    units = sum(isinstance(m, IC_LAYERS) for m in network.modules())
    kind = f"{type(network).__name__} with {units} IC units" if units else f"basic {type(network).__name__}"
    data = trainer.datamodule
    sizes = "of your own"
    if hasattr(data, "size"):
        sizes = ", ".join(f"{data.size(split):,} {split}" for split in ("train", "val", "test"))
        if data.batch_size > data.size("train"):
            tell(f"batch_size is {data.batch_size}, but there are {data.size('train')} training images: so many a step")
    lr = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    step = f"{task.global_batch} images a step, {steps:,} steps an epoch, lr {lr:.4g}"
    if task.fine_tunes:
        new = f", times {task.optimization.new_lr:g} for what IC adds" if units else ""
        step += f" (fine-tuning: a tenth of the usual{new}, gradients clipped to {task.gradient_clip_val:g})"
    count = f"{sum(p.numel() for p in network.parameters()):,} parameters"
    return f"{kind}, {count}, {task.start}{', taught' * (task.teacher is not None)}; images: {sizes}; {step}"


def require_one_step(trainer: Any) -> None:
    """Raises ValueError where hosts would go on at different steps, having found different checkpoints."""
    step = trainer.strategy.broadcast(trainer.global_step)
    if step != trainer.global_step:
        what = f"process {trainer.global_rank} would go on at step {trainer.global_step} and process 0 at step {step}"
        raise ValueError(f"{what}; give --runs a folder that all hosts share")


# What came of it.


@dataclass(frozen=True)
class FitResult:
    """What came of a training; printed, it says so.

    ``top1``: the best accuracy on the validation images, in [0, 1], reached in ``epoch`` (from 1) of ``epochs``; None
    without validation. ``weights``: of that epoch, for ``icnets.load`` and ``icnets predict``; None where none are
    kept. ``stopped``: why training ended early, or "".
    """

    folder: Path
    epochs: int
    epoch: int | None
    top1: float | None
    weights: Path | None
    stopped: str

    def __str__(self) -> str:
        best = [] if self.top1 is None else [f"best val/top1 {self.top1:.2%} in epoch {self.epoch} of {self.epochs}"]
        report = f"; next: icnets report {shlex.quote(str(self.folder))}" if self.weights is not None else ""
        return "\n".join([*best, *filter(None, [self.stopped]), f"files in {self.folder}{report}"])


def code_words(model: Any) -> list[str]:
    """What a command needs that reads a run's configuration, where ``model`` in it is code: its name once more."""
    return ["--model", model] if isinstance(model, str) and names_code(model) else []


def result_of(trainer: Any, folder: Path) -> FitResult:
    """What came of the trainer's training in ``folder``."""
    callbacks = vars(trainer)["callbacks"]
    rows = next(c.rows for c in callbacks if isinstance(c, History))
    best: dict[str, Any] = max((r for r in rows if "val/top1" in r), key=lambda row: row["val/top1"], default={})
    weights = folder / "checkpoints" / "best.safetensors"
    total, stopped = trainer.max_epochs or 0, ""
    for patience in (c for c in callbacks if isinstance(c, Patience)):
        if patience.wait_count >= patience.patience and len(rows) < total:
            why = f"no better val/top1 in {patience.wait_count} epochs (--patience)"
            stopped = f"stopped after epoch {len(rows)} of {total}: {why}"
    kept = weights if weights.is_file() else None
    return FitResult(folder, len(rows), best.get("epoch"), best.get("val/top1"), kept, stopped)
