"""One run of a comparison: one method trained with one seed, in whichever process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icnets import checkpoint
from icnets.convert import convert_
from icnets.distill import WeakLogitDistillation
from icnets.evaluation.measure import agreement, use_threads
from icnets.evaluation.methods import Method, Settings
from icnets.timm_models import create_model
from icnets.training.data import ImageData
from icnets.training.fit import fit
from icnets.training.network import calibration_batches
from icnets.training.quiet import silence
from icnets.training.task import ClassificationTask

__all__ = ["Epoch", "Job", "Run", "build", "image_data", "train", "warm_up"]

_SAME_ERROR = 1e-3  # in percentage points; Lightning keeps accuracies in float32


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to train ``method`` with ``seed``. ``data``: ImageData's arguments."""

    settings: Settings
    data: dict[str, Any]
    method: Method
    seed: int

    @property
    def epochs(self) -> int:
        training = self.settings.training
        return training.extra_epochs if self.method.start == "basic" else training.epochs

    @property
    def path(self) -> Path:
        return self.path_of(self.method)

    def path_of(self, method: Method) -> Path:
        """Where the trained network of ``method`` with this seed is kept."""
        words = "".join(c if c.isalnum() else " " for c in method.name.lower().replace("+", " plus ")).split()
        return self.settings.out / "checkpoints" / f"{'-'.join(words)}-seed{self.seed}.safetensors"


@dataclass(frozen=True)
class Epoch:
    """State after one epoch: mean training loss (nats), validation error (per cent), seconds of training so far."""

    epoch: int
    train_loss: float
    val_error: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """What came of a job. ``error`` is on the test images after the last epoch, whichever epoch was the best.

    ``start_error`` (validation, per cent) and ``agreement`` with the basic network's answers (test images, in [0, 1])
    are those before the first step, for a start from the basic network only.
    """

    method: str
    seed: int
    error: float
    seconds: float
    history: list[Epoch]
    start_error: float | None
    agreement: float | None
    checkpoint: str | None

    @property
    def last_error(self) -> float:
        return self.history[-1].val_error

    def first_at_most(self, error: float) -> tuple[int, float] | None:
        """Epoch and seconds when the validation error first was ``error`` or less; (0, 0.0) for a start there."""
        limit = error + _SAME_ERROR
        if self.start_error is not None and self.start_error <= limit:
            return 0, 0.0
        return next(((e.epoch, e.seconds) for e in self.history if e.val_error <= limit), None)


def image_data(arguments: dict[str, Any], seed: int) -> ImageData:
    """The images, found and checked; raises ValueError where they can't be used."""
    data = ImageData(**arguments, seed=seed)
    data.setup()
    return data


def build(
    settings: Settings, method: Method, data: ImageData, seed: int, trained: nn.Module | None = None
) -> tuple[nn.Module, float | None, float | None]:
    """The method's network before its first step.

    Args:
        settings: name the basic network.
        method: what to build.
        data: gives classes, channels and the batches that a warm start is calibrated on.
        seed: of the initial weights: methods with the same network start from the same ones.
        trained: the trained basic network, to start from.

    Returns:
        The network; with ``trained``, its validation error in per cent and its agreement with ``trained`` on the test
        images as well.

    Raises:
        ValueError: timm has no such network, or it doesn't take its options or the images.
    """
    basic = method.network is None
    name = settings.network.name if method.network is None else method.network
    options = settings.network.options if method.options is None else method.options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = create_model(name, ic=None, num_classes=data.num_classes, in_chans=data.in_chans, **options)
        except (TypeError, AssertionError) as error:
            where = "network.options" if basic and method.options is None else f"the options of {method.name!r}"
            raise ValueError(f"{name} doesn't take {where}: {error}") from error
    if trained is not None:
        model.load_state_dict(trained.state_dict())
    if method.ic is not None:
        convert_(model, method.ic, optimizers=(), calibration_data=calibration_batches(data))
    if trained is None:
        return model, None, None
    return model, error_percent(model, data.val_dataloader()), agreement(trained, model, data.test_dataloader())


@torch.no_grad()
def error_percent(model: nn.Module, loader: Any) -> float:
    """Share of images, in per cent, to which the network doesn't give its own class first; in eval mode."""
    training = model.training
    model.eval()
    wrong = total = 0
    for x, target in loader:
        wrong += int((model(x).argmax(1) != target).sum())
        total += len(target)
    model.train(training)
    return 100 * wrong / total


def train(job: Job, tick: Callable[[], None] = lambda: None) -> Run:
    """Trains one method with one seed and saves its network; ``tick`` is called after every epoch.

    A method that needs the trained basic network reads its checkpoint, which must be there already.
    """
    with use_threads(job.settings.threads), silence():
        data = image_data(job.data, job.seed)
        basic = None
        if job.method.start == "basic" or job.method.wld:
            basic = checkpoint.load(job.path_of(job.settings.methods[0]))
        start = basic if job.method.start == "basic" else None
        model, start_error, agreed = build(job.settings, job.method, data, job.seed, start)
        history = _fit(job, model, data, basic if job.method.wld else None, tick)
        model.cpu()
        is_basic = job.method == job.settings.methods[0]
        keep = is_basic or job.settings.save_checkpoints
        if keep:
            notes = {"method": job.method.name, "seed": str(job.seed), "classes": ",".join(data.class_names)}
            checkpoint.save(model, job.path, metadata=notes)
        return Run(
            method=job.method.name,
            seed=job.seed,
            error=error_percent(model, data.test_dataloader()),
            seconds=history[-1].seconds,
            history=history,
            start_error=start_error,
            agreement=agreed,
            checkpoint=str(job.path) if keep else None,
        )


def distillation(settings: Settings) -> WeakLogitDistillation:
    """The loss of methods with ``wld``; raises ValueError for a temperature or schedule out of its range."""
    smoothing = settings.training.label_smoothing
    wld = settings.wld
    return WeakLogitDistillation(temperature=wld.temperature, schedule=wld.schedule, label_smoothing=smoothing)


def warm_up(job: Job) -> None:
    """Two steps that nobody keeps: what a process does only once isn't to count for whichever method comes first."""
    with use_threads(job.settings.threads), silence():
        data = image_data(job.data, job.seed)
        model = build(job.settings, job.method, data, job.seed)[0]
        _fit(job, model, data, None, limits={"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 1})


def _fit(
    job: Job,
    model: nn.Module,
    data: ImageData,
    teacher: nn.Module | None,
    tick: Callable[[], None] = lambda: None,
    limits: dict[str, Any] | None = None,
) -> list[Epoch]:
    training, warm = job.settings.training, job.method.start == "basic"
    loss = None if teacher is None else distillation(job.settings)
    torch.manual_seed(job.seed)  # for dropout and stochastic depth
    task = ClassificationTask(
        model,
        data.num_classes,
        data.in_chans,
        teacher=teacher,
        distillation=loss,
        lr=training.extra_lr if warm else training.lr,
        weight_decay=training.weight_decay,
        schedule="cosine",
        warmup=training.warmup,
        label_smoothing=training.label_smoothing,
    )
    limits = limits or {"max_epochs": job.epochs}
    history = fit(task, data, accelerator=job.settings.accelerator, tick=tick, **limits)
    return [
        Epoch(int(row["epoch"]), row["train/loss"], round(100 * (1 - row["val/top1"]), 4), row["seconds"])
        for row in history
    ]
