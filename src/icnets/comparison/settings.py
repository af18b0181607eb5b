"""What a comparison consists of: networks, ways to train them, seeds; as one plain record that YAML can hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from icnets.convert.config import ICConfig
from icnets.distill.loss import DistillationSchedule
from icnets.training.optimization import Optimization


@dataclass(frozen=True)
class Network:
    """A basic network.

    Args:
        name: any name timm knows, or one of the setting ``imports``.
        options: its further arguments, as for ``timm.create_model``; number of classes and channels come from the data.
        before_norm: where the function of ``imports`` that makes the network takes an argument of this name, its value:
            a function before each norm, as a control of the collision.
        weights: to start from: "pretrained" for timm's, or a file of weights; None: random ones.
    """

    name: str = "resnet18"
    options: dict[str, Any] = field(default_factory=dict)
    before_norm: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Training:
    """How a network is trained, so that nothing but the method differs.

    Args:
        epochs: from the first step to the last.
        lr: highest learning rate.
        warmup: part of training in which the learning rate rises linearly.
        weight_decay: on weights; biases, normalisation and what IC adds have none.
        label_smoothing: of the cross-entropy, in [0, 1).
        optimizer: sgd (Nesterov momentum 0.9) or adamw.
        schedule: of the learning rate after the warm-up: cosine (to 0), one-cycle (linear to 0) or step.
        ema: decay per step of the running average of the weights that is evaluated and kept; None: the last weights.
        clip: largest norm of the gradients; None: they aren't clipped.
        new_lr: of what IC adds, as a fraction of ``lr``.
        channels_last: keep images and weights with channels last; in any format, the functions are the same.
    """

    epochs: int = 30
    lr: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "cosine"
    ema: float | None = None
    clip: float | None = None
    new_lr: float = 1.0
    channels_last: bool = False

    def __post_init__(self) -> None:
        Optimization(**{f.name: getattr(self, f.name) for f in fields(Optimization) if hasattr(self, f.name)})
        _require(
            self,
            epochs=(self.epochs >= 1, "be at least 1"),
            label_smoothing=(0 <= self.label_smoothing < 1, "be at least 0 and less than 1"),
            ema=(self.ema is None or 0 < self.ema < 1, "lie between 0 and 1, such as 0.99"),
            clip=(self.clip is None or self.clip > 0, "be positive, such as 1"),
        )


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
        _require(self, **{name: (getattr(self, name) > 0, "be positive") for name in ("extra_epochs", "extra_lr")})

    def of(self, start: str) -> Training:
        """The training of a method with this ``start``."""
        own = {f.name: getattr(self, f.name) for f in fields(Training)}
        return Training(**own if start == "scratch" else own | {"epochs": self.extra_epochs, "lr": self.extra_lr})


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
    """A network and how it is trained: one row of the table, or an axis of a grid.

    Args:
        name: in the table; unique.
        ic: how the network is converted; None: it stays basic.
        start: "scratch", or "basic": from the trained basic network of the same seed. "gain" and "calibrate" are
            "basic" as well, and give the IC network that warm start in the paper's form, with no ``max_change``.
        wld: weak logit distillation from the trained basic network of the same seed: true for that of the settings,
            or one of the method's own.
        network: another network that timm knows (a peer unit such as seresnet18) instead of the basic one.
        options: its arguments for ``timm.create_model``; None: the basic network's. In a grid, options of the basic
            network come on top of its own.
        control: name of the method that it is to beat, all else being equal; None: the basic network, in a grid
            trained in the same way.
        before_norm: see :class:`Network`.
        lr: highest learning rate; None: that of the training.
        teacher: fraction of the basic network's epochs after which it teaches; 1 for all of them.
    """

    name: str
    ic: ICConfig | None = None
    start: str = "scratch"
    wld: WeakDistillation | bool = False
    network: str | None = None
    options: dict[str, Any] | None = None
    control: str | None = None
    before_norm: str | None = None
    lr: float | None = None
    teacher: float = 1.0

    def __post_init__(self) -> None:
        if self.start not in ("scratch", "basic", "gain", "calibrate"):
            starts = "scratch or basic, or a warm start: gain or calibrate"
            raise ValueError(f"start of {self.name!r} is {self.start!r}; it must be {starts}")
        if self.start != "scratch" and self.network is not None:
            what = f"{self.name!r} is a {self.network} and can't start from the basic network"
            raise ValueError(f"{what}: start: scratch")
        if not 0 < self.teacher <= 1:
            raise ValueError(f"teacher of {self.name!r} is {self.teacher}; it must be a budget in (0, 1]")

    def distillation(self, general: WeakDistillation) -> WeakDistillation | None:
        """The method's own, ``general`` where it says true, or None."""
        return self.wld if isinstance(self.wld, WeakDistillation) else general if self.wld else None


@dataclass(frozen=True)
class Recipe:
    """How the networks of a grid are trained.

    Args:
        name: in the table; unique.
        training: epochs (of the whole budget), learning rate and so on.
        data: arguments of the data that differ, such as mixup.
    """

    name: str
    training: Training = field(default_factory=Training)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A block of a grid: every combination of what is named here.

    Args:
        networks: names.
        seeds: each sets the data's draw or fold, the initial weights and the order of the examples.
        methods: names.
        recipes: names.
        budgets: epochs, as fractions of the recipe's.
    """

    networks: list[str]
    seeds: list[int]
    methods: list[str] = field(default_factory=lambda: ["scratch"])
    recipes: list[str] = field(default_factory=lambda: ["plain"])
    budgets: list[float] = field(default_factory=lambda: [1.0])


@dataclass(frozen=True)
class Settings:
    """Everything about a comparison.

    Each of ``methods`` is a row of the table, trained with each of ``seeds``. With ``networks`` and ``parts`` it is a
    grid instead: every part trains its networks by its methods, each with its own seeds.

    Args:
        methods: the rows; the first is the basic network. In a grid, the ways to train; the first is from scratch.
        data: ``kind`` and arguments of the data; without a kind, those of :class:`icnets.data.data_module.ImageData`.
        out: folder for lines.jsonl, results.json, results.md and the checkpoints, of a grid those that other runs need;
            made if missing.
        seeds: one run of each method per seed; a seed sets the split, the initial weights and the order of the images.
        network: the basic network.
        training: how it is trained.
        wld: how weak logit distillation is done.
        confidence: of the intervals.
        workers: processes that train at the same time; None: one per core, at most 8 (one on a GPU).
        threads: of torch in each process. Results depend on it in the last digits, not on ``workers``.
        accelerator: cpu, gpu or auto, as in Lightning.
        latency_batch: images in a batch when ms per image is measured.
        latency_rounds: interleaved rounds of that measurement.
        name: of a grid, in its lines; the name of ``out`` by default.
        networks: of a grid; the first is the basic one.
        recipes: of a grid: the trainings; without any, "plain" is ``training``.
        parts: of a grid: what is run.
        imports: import paths of data kinds and networks by their names here, such as
            ``{solar: "studies.solar:SolarCells"}``.
        lines: file of finished runs, a JSON object in each line; OUT/lines.jsonl by default.
        prune: take lines out of the file that belong to no run of this comparison.
        max_slowdown: convert no more layers than leave an IC network within this ratio of the basic one's time, such as
            1.05: measured before the first run, on one image ("training": on a batch); see :class:`icnets.ICConfig`.
        engine: where that is measured: eager, compile, onnxruntime, openvino or training.
        minutes: of the whole comparison; epochs and seeds are then chosen so that it fits, by steps that are measured.
    """

    methods: list[Method] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
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
    name: str = ""
    networks: list[Method] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)
    lines: Path | None = None
    prune: bool = False
    max_slowdown: float | None = None
    engine: str = "eager"
    minutes: float | None = None

    def __post_init__(self) -> None:
        if not self.methods:
            what = "there are no methods to compare"
            raise ValueError(f"{what}; give a folder of images, or a recipe, such as --config recipes/demo.yaml")
        if bool(self.networks) != bool(self.parts):
            raise ValueError("a grid needs networks and parts; give both, or neither")
        _check_methods("methods", self.methods)
        ICConfig(max_slowdown=self.max_slowdown, engine=self.engine)  # checks both
        if self.parts:
            _check_methods("networks", self.networks)
            said = {"seeds": True, "training": bool(self.recipes), "wld": all(m.wld is not True for m in self.methods)}
            for name in (name for name, by_parts in said.items() if by_parts and self._given(name)):
                raise ValueError(f"{name} is given, but the parts and recipes of this grid say it; change it there")
        for part in [Part([], self.seeds), *self.parts]:
            self._check_part(part)
        counts = ("workers", "threads", "latency_batch", "latency_rounds")
        _require(
            self,
            confidence=(0 < self.confidence < 1, "lie between 0 and 1, such as 0.95"),
            accelerator=(self.accelerator in ("cpu", "gpu", "cuda", "auto"), "be cpu, gpu, cuda or auto"),
            minutes=(self.minutes is None or 0 < self.minutes < float("inf"), "be positive, such as 20"),
            **{name: ((value := getattr(self, name)) is None or value >= 1, "be at least 1") for name in counts},
        )
        if self.minutes is not None and self.parts:
            raise ValueError("minutes is given, but the parts of this grid say seeds and epochs; leave it out")
        for name in ("training.epochs", "training.extra_epochs", "seeds"):
            if self.minutes is not None and self._given(name):
                what = f"{name} is {attrgetter(name)(self)}, but minutes chooses it"
                raise ValueError(f"{what}; leave it out, or give --minutes null")

    def _given(self, name: str) -> bool:
        """Whether a setting has another value than by default."""
        return attrgetter(name)(self) != attrgetter(name)(Settings(self.methods))

    def _check_part(self, part: Part) -> None:
        for kind in ("networks", "methods", "recipes") if part.networks else ():
            names = [item.name for item in getattr(self, kind)] or ["plain"]
            for name in getattr(part, kind):
                if name not in names:
                    raise ValueError(f"a part names {name!r} among its {kind}; there are {', '.join(names)}")
        if not part.seeds or len(set(part.seeds)) < len(part.seeds) or min(part.seeds) < 0:
            raise ValueError(f"seeds are {part.seeds}; give at least one, each once, none negative")
        if not all(0 < budget <= 1 for budget in part.budgets):
            raise ValueError(f"budgets of a part are {part.budgets}; each must lie in (0, 1]")

    @property
    def file(self) -> Path:
        """Where the lines are."""
        return self.lines or self.out / "lines.jsonl"


def _require(part: Any, **rules: tuple[bool, str]) -> None:
    """Raises ValueError for the first setting that isn't as its rule says."""
    for name, (fits, allowed) in rules.items():
        if not fits:
            raise ValueError(f"{name} is {getattr(part, name)!r}; it must {allowed}")


def _check_methods(kind: str, methods: Sequence[Method]) -> None:
    """Raises ValueError unless the first is a name and nothing else, and names and controls make sense."""
    first = methods[0]
    if first != Method(first.name):
        raise ValueError(f"the first of {kind}, {first.name!r}, must be the basic network: a name and nothing else")
    names = [method.name for method in methods]
    for method in methods:
        if names.count(method.name) > 1:
            raise ValueError(f"{names.count(method.name)} {kind} are called {method.name!r}; names must differ")
        if method.control is not None and (method.control not in names or method.control == method.name):
            what = f"the control of {method.name!r} is {method.control!r}"
            raise ValueError(f"{what}; it must be another one of {', '.join(names)}")
