"""One run: one network trained by one method with one seed, in whichever process; its data and network by name."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import nn

from icnets import checkpoint
from icnets.checkpoint.image_notes import notes_of_data
from icnets.checkpoint.weights_files import load_weights
from icnets.comparison.planned_runs import Job
from icnets.comparison.settings import Network, Training, WeakDistillation
from icnets.convert.surgery import convert_
from icnets.data.data_module import ImageData
from icnets.distill.loss import WeakLogitDistillation
from icnets.open_network import make_network
from icnets.profile.measure import agreement, use_threads
from icnets.support.gone import without_gone
from icnets.support.hooks import modes_kept
from icnets.support.named_code import imported
from icnets.support.quiet import silence
from icnets.training.callbacks import History, WeightAverage
from icnets.training.network import calibration_batches
from icnets.training.task import ClassificationTask

# Networks that Python's callers gave, by name; they are known in this process only.
GIVEN: dict[str, nn.Module] = {}

_SAME_ERROR = 1e-3  # in percentage points; Lightning keeps accuracies in float32


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
    are those before the first step, for a start from the basic network only. ``test`` has all figures of the test
    images: error (per cent), loss (nats), with two classes auc (area under the ROC curve, in [0, 1]).
    """

    method: str
    seed: int
    error: float
    seconds: float
    history: list[Epoch]
    start_error: float | None
    agreement: float | None
    checkpoint: str | None
    test: dict[str, float]

    def first_at_most(self, error: float) -> tuple[int, float] | None:
        """Epoch and seconds when the validation error first was ``error`` or less; (0, 0.0) for a start there."""
        limit = error + _SAME_ERROR
        if self.start_error is not None and self.start_error <= limit:
            return 0, 0.0
        return next(((e.epoch, e.seconds) for e in self.history if e.val_error <= limit), None)


def make_data(
    arguments: Mapping[str, Any], seed: int, *, cache: Path | None = None, imports: Mapping[str, str] | None = None
) -> Any:
    """A Lightning data module, its data found and checked.

    Args:
        arguments: ``kind``, "images" (if left out: scikit-learn's digits, or a folder) or a name of ``imports``, and
            the arguments of its class.
        seed: of splits or folds, order and augmentation.
        cache: folder for data that takes long to make.
        imports: import paths of classes by kind. Every class takes ``seed``; one with an argument ``cache`` is given
            that as well.

    Raises:
        ValueError: an unknown kind, arguments it doesn't take, or data that can't be used.
    """
    rest, imports, make = dict(arguments), imports or {}, ImageData
    kind = rest.pop("kind", "images")
    if kind == "images":
        rest = without_gone({"data": rest})["data"]
    elif kind in imports:
        make = imported(imports[kind])
        if cache is not None and "cache" in signature(make).parameters:
            rest["cache"] = cache
    else:
        kinds = ", ".join(["images", *imports])
        raise ValueError(f"data.kind is {kind!r}; it must be one of {kinds}; imports gives others their import paths")
    try:
        data = make(**rest, seed=seed)
    except TypeError as error:
        raise ValueError(f"data of kind {kind} doesn't take these arguments: {error}") from error
    data.setup()
    return data


def create(network: Network, *, num_classes: int, in_chans: int, imports: Mapping[str, str] | None = None) -> nn.Module:
    """The network before any conversion: with the weights that its settings name, or random ones.

    Args:
        network: its name is one of ``imports``, timm's, or code.
        num_classes: of its output.
        in_chans: of its input.
        imports: import paths of functions that make a network, by name.

    Raises:
        ValueError: there is no network of this name, or there are no such weights.
        TypeError: options that it doesn't take.
    """
    if network.name in GIVEN:
        return deepcopy(GIVEN[network.name])
    path, pretrained = (imports or {}).get(network.name), network.weights == "pretrained"
    options = {"num_classes": num_classes, "in_chans": in_chans, **network.options}
    options |= {} if network.before_norm is None else {"before_norm": network.before_norm}
    if path is not None:
        model: nn.Module = imported(path)(**options)
    else:
        model = make_network(network.name, pretrained=pretrained, **options)
    if network.weights is not None and not pretrained:
        load_weights(model, Path(network.weights))
    return model


def create_for(data: Any, network: Network, imports: Mapping[str, str], *, starts: bool = True) -> nn.Module:
    """The network for the classes and channels of ``data``; where it isn't what ``starts``, its weights follow."""
    network = network if starts else replace(network, weights=None)
    return create(network, num_classes=data.num_classes, in_chans=data.in_chans, imports=imports)


def build(job: Job, data: Any, trained: nn.Module | None = None) -> nn.Module:
    """The job's network before its first step.

    Args:
        job: says what to build; jobs with the same network and seed start from the same weights.
        data: gives classes, channels and the batches that a warm start is calibrated on.
        trained: the trained basic network, to start from.

    Raises:
        ValueError: there is no such network, or it doesn't take its options or the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        try:
            model = create_for(data, job.network, job.settings.imports, starts=trained is None)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{job.network.name} doesn't take the options of {job.method!r}: {error}") from error
    if trained is not None:
        model.load_state_dict(trained.state_dict())
    if job.ic is not None:
        convert_(model, job.ic, optimizers=(), calibration_data=calibration_batches(data))
    return model


@torch.no_grad()
def figures(model: nn.Module, loader: Any) -> dict[str, float]:
    """Error in per cent, loss in nats and, of two classes, auc of a network in eval mode on a loader's images."""
    with modes_kept(model):
        model.eval()
        answers, targets = zip(*((model(x), target) for x, target in loader), strict=True)
    logits, target = torch.cat(answers), torch.cat(targets)
    error = 100 * int((logits.argmax(1) != target).sum()) / len(target)
    found = {"error": error, "loss": round(float(F.cross_entropy(logits, target)), 6)}
    if logits.shape[1] == 2:
        from torchmetrics.functional.classification import binary_auroc

        found["auc"] = round(float(binary_auroc(logits[:, 1] - logits[:, 0], target)), 6)
    return found


def load(path: Path, network: Network, data: Any, imports: Mapping[str, str]) -> nn.Module:
    """The trained network of a checkpoint; ``network`` is what it was before its conversion."""
    return checkpoint.load(path, create_for(data, network, imports, starts=False))


def data_of(job: Job) -> Any:
    """The data module of a job, ready."""
    settings = job.settings
    return make_data(job.data, job.seed, cache=settings.out / "data", imports=settings.imports)


def train(job: Job, tick: Callable[[], None] = lambda: None) -> Run:
    """Trains one network and, where the job says so, saves it; ``tick`` is called after every epoch.

    The checkpoints that the job needs must be there already.
    """
    settings = job.settings
    with use_threads(settings.threads), silence():
        data, start_error, agreed = data_of(job), None, None
        trained = {path: load(path, settings.network, data, settings.imports) for path in job.needs}
        basic, teacher = (None if path is None else trained[path] for path in (job.start, job.teacher))
        model = build(job, data, basic)
        if basic is not None:
            start_error = figures(model, data.val_dataloader())["error"]
            agreed = agreement(basic, model, data.test_dataloader())
        ticking = LambdaCallback(on_train_epoch_end=lambda *_: tick())
        history = fit(job, model, data, teacher, ticking, max_epochs=job.training.epochs)
        model.cpu()
        if job.keep is not None:
            notes = {"method": job.method, "seed": str(job.seed)}
            checkpoint.save(model, job.keep, metadata=notes | notes_of_data(data))
        test = figures(model, data.test_dataloader())
    kept = None if job.keep is None else str(job.keep)
    return Run(job.method, job.seed, test["error"], history[-1].seconds, history, start_error, agreed, kept, test)


def distillation(wld: WeakDistillation | None, training: Training) -> WeakLogitDistillation | None:
    """The loss of a method; raises ValueError for a temperature or schedule out of its range."""
    if wld is None:
        return None
    return WeakLogitDistillation(**vars(wld), label_smoothing=training.label_smoothing)


def warm_up(job: Job) -> None:
    """Train two steps and forget them, so that the first method isn't charged for one-time costs."""
    with use_threads(job.settings.threads), silence():
        data = data_of(job)
        fit(job, build(job, data), data, None, max_epochs=1, limit_train_batches=2, limit_val_batches=1)


def fit(
    job: Job, model: nn.Module, data: Any, teacher: nn.Module | None, *more: Callback, **limits: int
) -> list[Epoch]:
    """Trains a job's network in place: its epochs. The callbacks ``more`` and ``limits`` go to Lightning's trainer."""
    training = job.training
    torch.manual_seed(job.seed)  # for dropout and stochastic depth
    options = {k: v for k, v in asdict(training).items() if k not in ("epochs", "ema", "clip")}
    loss = None if teacher is None else distillation(job.wld, training)
    task = ClassificationTask(model, data.num_classes, data.in_chans, teacher=teacher, distillation=loss, **options)
    average = [] if training.ema is None else [WeightAverage(training.ema)]
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    fixed: dict[str, Any] = {"devices": 1, "num_sanity_val_steps": 0, "gradient_clip_val": training.clip, **silent}
    fixed |= {"accelerator": job.settings.accelerator, "callbacks": [history := History(), *average, *more]}
    L.Trainer(**{**fixed, **limits}).fit(task, datamodule=data)
    return [
        Epoch(int(row["epoch"]), row["train/loss"], round(100 * (1 - row["val/top1"]), 4), row["seconds"])
        for row in history.rows
        if "val/top1" in row  # not where a probe ends within an epoch
    ]
