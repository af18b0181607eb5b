"""What a comparison consists of: its methods (the rows of the table), seeds and training, as one plain record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from icnets.convert.surgery import ICConfig
from icnets.distill.loss import DistillationSchedule
from icnets.training.optimization import Optimization

__all__ = [
    "ComparedTraining",
    "Method",
    "Network",
    "Settings",
    "Training",
    "WeakDistillation",
    "check_methods",
    "check_resources",
]


@dataclass(frozen=True)
class Network:
    """A basic network.

    Args:
        name: any name timm knows, or one of :data:`icnets.compare.networks.OWN`.
        options: its further arguments, as for ``timm.create_model``; number of classes and channels come from the data.
        before_norm: a function between each convolution and its norm, where IC has its collision, as a control: one
            of :data:`icnets.compare.networks.BEFORE_NORM`; nothing: none.
    """

    name: str = "resnet18"
    options: dict[str, Any] = field(default_factory=dict)
    before_norm: str | None = None


@dataclass(frozen=True)
class Training:
    """How a network is trained, so that nothing but the method differs (ours: SGD with Nesterov momentum).

    Args:
        epochs: from the first step to the last.
        lr: highest learning rate.
        warmup: part of training in which the learning rate rises linearly.
        weight_decay: on weights; biases, normalisation and what IC adds have none.
        label_smoothing: of the cross-entropy, in [0, 1).
        optimizer: sgd (Nesterov momentum 0.9) or adamw.
        schedule: of the learning rate after the warm-up: cosine (to 0), one-cycle (linear to 0) or step.
        ema: decay per step of the running average of the weights that is evaluated and kept; nothing: the last ones.
    """

    epochs: int = 30
    lr: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "cosine"
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; training needs at least 1 epoch")
        Optimization(self.optimizer, self.lr, self.weight_decay, 0.9, self.schedule, self.warmup)  # type: ignore[arg-type]
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and less than 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; the decay of an average must lie between 0 and 1, such as 0.99")


@dataclass(frozen=True)
class ComparedTraining(Training):
    """Training of a comparison, where some methods start from the trained basic network.

    Args:
        extra_epochs: of a method that starts from the trained basic network.
        extra_lr: highest learning rate of the extra epochs.
    """

    extra_epochs: int = 20
    extra_lr: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_epochs < 1:
            raise ValueError(f"extra_epochs is {self.extra_epochs}; training needs at least 1 epoch")
        if not self.extra_lr > 0:
            raise ValueError(f"extra_lr is {self.extra_lr}; a learning rate must be positive")

    def of(self, start: str) -> Training:
        """The training of a method with this ``start``: "scratch" or "basic"."""
        own = {f.name: getattr(self, f.name) for f in fields(Training)}
        return Training(**own | ({"epochs": self.extra_epochs, "lr": self.extra_lr} if start == "basic" else {}))


@dataclass(frozen=True)
class WeakDistillation:
    """Weak logit distillation from the trained basic network; see :class:`icnets.WeakLogitDistillation`.

    Args:
        temperature: T.
        schedule: lambda(t).
        standardize: compare z-scores of the logits.
        correct_only: only where the teacher is right.
        surpass_patience: off for good after this many validations with the student as good as its teacher.
    """

    temperature: float = 4.0
    schedule: DistillationSchedule = field(default_factory=DistillationSchedule)
    standardize: bool = False
    correct_only: bool = False
    surpass_patience: int | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: in the table; unique.
        ic: how the network is converted; nothing: it stays basic.
        start: "scratch", or "basic": from the trained basic network of the same seed, for the extra epochs.
        wld: weak logit distillation from the trained basic network of the same seed.
        network: another network that timm knows (a peer unit such as seresnet18) instead of the basic one.
        options: its arguments for ``timm.create_model``; nothing: the basic network's.
        control: name of the method that it is to beat, all else being equal; nothing: the basic network.
    """

    name: str
    ic: ICConfig | None = None
    start: str = "scratch"
    wld: bool = False
    network: str | None = None
    options: dict[str, Any] | None = None
    control: str | None = None

    def __post_init__(self) -> None:
        if self.start not in ("scratch", "basic"):
            raise ValueError(f"start of {self.name!r} is {self.start!r}; it must be scratch or basic")
        if self.start == "basic" and self.network is not None:
            raise ValueError(
                f"{self.name!r} is a {self.network} and can't start from the basic network: start: scratch"
            )
        if self.start == "scratch" and self.ic is not None and self.ic.warm_start != "none":
            raise ValueError(
                f"{self.name!r} has warm_start: {self.ic.warm_start} but starts from scratch; say start: basic"
            )


@dataclass(frozen=True)
class Settings:
    """Everything about a comparison but the data.

    Args:
        methods: the rows; the first is the basic network.
        out: folder for results.json, results.md, the pictures and the checkpoints; made if missing.
        seeds: one run of each method per seed; a seed sets the split, the initial weights and the order of the images.
        network: the basic network.
        training: how it is trained.
        wld: how weak logit distillation is done.
        confidence: of the intervals.
        workers: processes that train at the same time; nothing: one per core, at most 8 (one on a GPU).
        threads: of torch in each process. Results depend on it in the last digits, not on ``workers``.
        accelerator: cpu, gpu or auto, as in Lightning.
        latency_batch: images in a batch when ms per image is measured.
        latency_rounds: interleaved rounds of that measurement.
        save_checkpoints: keep each trained network as OUT/checkpoints/*.safetensors; the basic ones are always kept.
        folder: settings of this same shape, and of the data's, which hold instead where ``data.root`` is given.
    """

    methods: list[Method] = field(default_factory=list)
    out: Path = Path("runs/compare")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    network: Network = field(default_factory=Network)
    training: ComparedTraining = field(default_factory=ComparedTraining)
    wld: WeakDistillation = field(default_factory=WeakDistillation)
    confidence: float = 0.95
    workers: int | None = None
    threads: int = 1
    accelerator: str = "cpu"
    latency_batch: int = 32
    latency_rounds: int = 21
    save_checkpoints: bool = True
    folder: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_methods(self.methods)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {self.seeds}; give at least one, each once, none negative")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must lie between 0 and 1, such as 0.95")
        check_resources(self, "workers", "threads", "latency_batch", "latency_rounds")


def check_resources(settings: Any, *counts: str) -> None:
    """Raises ValueError for an accelerator that Lightning doesn't know, or one of ``counts`` given and below 1."""
    if settings.accelerator not in ("cpu", "gpu", "cuda", "auto"):
        raise ValueError(f"accelerator is {settings.accelerator!r}; it must be cpu, gpu, cuda or auto")
    for name in counts:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def check_methods(methods: Sequence[Method]) -> None:
    """Raises ValueError unless the first method is a basic network from scratch, and names and controls make sense."""
    if not methods:
        raise ValueError("there are no methods to compare; give a recipe, such as --config recipes/demo.yaml")
    first = methods[0]
    if first != Method(first.name):
        raise ValueError(f"the first method, {first.name!r}, must be the basic network: a name and nothing else")
    names = [method.name for method in methods]
    for method in methods:
        if names.count(method.name) > 1:
            raise ValueError(f"{names.count(method.name)} methods are called {method.name!r}; names must differ")
        if method.control is not None and (method.control not in names or method.control == method.name):
            raise ValueError(
                f"the control of {method.name!r} is {method.control!r}; it must be another one of {', '.join(names)}"
            )
