"""What a study consists of: networks, methods, recipes, and the parts of their grid that are to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from icnets.compare.methods import Network, Training, WeakDistillation, check_resources
from icnets.convert.surgery import ICConfig

__all__ = ["Part", "Recipe", "Study", "StudyMethod", "StudyNetwork"]

STARTS = ("scratch", "gain", "calibrate")


@dataclass(frozen=True)
class StudyNetwork:
    """One network of a study. The first of a study is the basic one: a name, a model, and its options.

    Args:
        name: in lines and tables; unique.
        model: timm's name, or one of ours; nothing: the basic network's.
        options: of the model; with the basic network's model, they come on top of the basic network's own.
        before_norm: a control, see :class:`icnets.compare.methods.Network`.
        ic: how the network is converted; nothing: it isn't.
    """

    name: str
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    before_norm: str | None = None
    ic: ICConfig | None = None

    def __post_init__(self) -> None:
        if self.ic is not None and self.ic.warm_start != "none":
            raise ValueError(
                f"{self.name!r} has warm_start: {self.ic.warm_start}; in a study, the method's start says so"
            )


@dataclass(frozen=True)
class StudyMethod:
    """One way to train a network.

    Args:
        name: in lines and tables; unique.
        wld: weak logit distillation from the trained basic network of the same recipe and seed.
        teacher: budget of that basic network's training; 1 is all of it.
        start: "scratch"; or from the trained basic network by "gain" or "calibrate" (a network without IC units just
            takes the weights over).
        lr: highest learning rate; nothing: the recipe's.
    """

    name: str
    wld: WeakDistillation | None = None
    teacher: float = 1.0
    start: str = "scratch"
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start of {self.name!r} is {self.start!r}; it must be one of {', '.join(STARTS)}")
        if not 0 < self.teacher <= 1:
            raise ValueError(f"teacher of {self.name!r} is {self.teacher}; it must be a budget in (0, 1]")


@dataclass(frozen=True)
class Recipe:
    """How everything is trained.

    Args:
        name: in lines and tables; unique.
        training: epochs (of the whole budget), learning rate and so on.
        data: arguments of the data set that differ, such as mixup.
    """

    name: str
    training: Training = field(default_factory=Training)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A block of the grid: every combination of what is named here.

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
class Study:
    """Everything about a study.

    Args:
        name: of the study.
        data: ``kind`` and arguments of a data set; see :data:`icnets.compare.datasets.DATASETS`.
        networks: the first is the basic one.
        methods: the ways to train them.
        recipes: the first is the plain one.
        parts: what is run.
        out: folder for checkpoints and data that are kept between runs; runs/NAME by default.
        lines: file of results, a JSON object in each line; OUT/lines.jsonl by default.
        workers: processes that train at the same time; nothing: one per core, at most 8 (one on a GPU).
        threads: of torch in each process.
        accelerator: cpu, gpu or auto, as in Lightning.
        cost_rounds: interleaved rounds of the measurement of a training step.
        prune: take lines out of the file that belong to no run of this study.
    """

    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    networks: list[StudyNetwork] = field(default_factory=list)
    methods: list[StudyMethod] = field(default_factory=lambda: [StudyMethod("scratch")])
    recipes: list[Recipe] = field(default_factory=lambda: [Recipe("plain")])
    parts: list[Part] = field(default_factory=list)
    out: Path | None = None
    lines: Path | None = None
    workers: int | None = None
    threads: int = 1
    accelerator: str = "cpu"
    cost_rounds: int = 11
    prune: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.networks or not self.parts:
            raise ValueError("a study needs a name, networks and parts; give one, such as recipes/studies/smoke.yaml")
        for kind, items in (("networks", self.networks), ("methods", self.methods), ("recipes", self.recipes)):
            names = [item.name for item in items]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{names.count(name)} {kind} are called {name!r}; names must differ")
        first = self.networks[0]
        if first.model is None or first.ic is not None or first.before_norm is not None:
            raise ValueError(f"the first network, {first.name!r}, must be the basic one: name, model, options")
        check_resources(self, "workers", "threads", "cost_rounds")
        for part in self.parts:
            self._check_part(part)

    def _check_part(self, part: Part) -> None:
        for kind, wanted, known in (
            ("networks", part.networks, self.networks),
            ("methods", part.methods, self.methods),
            ("recipes", part.recipes, self.recipes),
        ):
            names = [item.name for item in known]
            for name in wanted:
                if name not in names:
                    raise ValueError(f"a part names {name!r} among its {kind}; there are {', '.join(names)}")
        if not part.seeds or len(set(part.seeds)) < len(part.seeds) or min(part.seeds) < 0:
            raise ValueError(f"seeds of a part are {part.seeds}; give at least one, each once, none negative")
        if not all(0 < budget <= 1 for budget in part.budgets):
            raise ValueError(f"budgets of a part are {part.budgets}; each must lie in (0, 1]")

    @property
    def folder(self) -> Path:
        """Where checkpoints and data are kept."""
        return Path("runs") / self.name if self.out is None else self.out

    @property
    def file(self) -> Path:
        """Where the lines are."""
        return self.folder / "lines.jsonl" if self.lines is None else self.lines

    def network(self, own: StudyNetwork) -> Network:
        """The network before its conversion, with its options resolved."""
        basic = self.networks[0]
        assert basic.model is not None
        plain = Network(basic.model, basic.options)
        if own.model is None or own.model == basic.model:
            return replace(plain, options={**basic.options, **own.options}, before_norm=own.before_norm)
        return Network(own.model, own.options, own.before_norm)


def by_name(items: Sequence[Any], name: str) -> Any:
    """The one of ``items`` with this name."""
    return next(item for item in items if item.name == name)
