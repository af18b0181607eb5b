"""How a network is converted: a record of plain values."""

import math
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Self

CHOICES = {
    "layers": ("all", "auto", "kxk", "no-stem"),
    "scale": ("sqrt", "sum", "mean"),
    "warm_start": ("none", "gain", "calibrate"),
    "engine": ("eager", "compile", "onnxruntime", "openvino", "training"),
}
_BUDGET = ("max_slowdown", "engine", "only")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class ICConfig:
    """How a network is converted. Plain values only, so that it can be saved with a checkpoint.

    Args:
        layers: "all" convolutions (the paper's), all in which s costs little beside the layer itself ("auto": not
            depthwise ones and groups of two inputs), only those with a kernel larger than 1 ("kxk"), or all but the
            first convolution ("no-stem").
        linear: convert ``nn.Linear`` as well (the paper converts convolutions).
        inner_bias: learn b1, the bias inside the rectifier (paper: arXiv 2011.11271).
        collision_weight: initial w' in the paper's units.
        scale: units in which w' is learned; see :class:`icnets.ICConv2d`.
        warm_start: how a trained network keeps its function. "none" starts at ``collision_weight``. "gain" puts a
            learned gain, from 0, on the branch: the function is exactly the same. "calibrate" sets w' (b1 where inputs
            can be negative) on a few batches so that the branch fires in ``calibration_rate`` of all places, and
            starts the gain as large as ``max_change`` allows: w' and b1 learn from the first step on.
        calibration_rate: fraction of places, between 0 and 1, in which the branch fires after "calibrate".
        max_change: how much "calibrate" may change the network's output: relative L2, with a margin for other data,
            on batches held back from it. None bounds nothing and adds no gain, as in the paper's form: the rate alone
            decides, and a trained network may lose its function.
        max_slowdown: convert as many of these layers, the cheapest first, as leave the whole network within this
            ratio of the basic network's time, such as 1.05: measured when it is converted, on an example input.
        engine: where that is measured: inference in PyTorch ("eager", "compile"), ONNX Runtime or OpenVINO, on the
            network's deployed form there, or "training", forward and backward in eager mode.
        only: names of the layers to convert, whatever ``layers`` says. What ``max_slowdown`` chose stands here, after
            which nothing is measured again. None: all.
        version: of this record's format. One of version 1 had no ``max_change``; it is read as None.

    Raises:
        ValueError: for a value of another type or out of its range, naming the range.

    Example:
        >>> ICConfig(layers="kxk").to_dict()["layers"]
        'kxk'
    """

    layers: str = "all"
    linear: bool = False
    inner_bias: bool = True
    collision_weight: float = 0.0
    scale: str = "sqrt"
    warm_start: str = "none"
    calibration_rate: float = 0.01
    max_change: float | None = 0.01
    max_slowdown: float | None = None
    engine: str = "eager"
    only: tuple[str, ...] | None = None
    version: int = 2

    def __post_init__(self) -> None:
        def require(name: str, fits: bool, what: str) -> None:
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must {what}")

        for name, choices in CHOICES.items():
            require(name, getattr(self, name) in choices, f"be one of {', '.join(choices)}")
        for name in ("linear", "inner_bias"):
            require(name, isinstance(getattr(self, name), bool), "be True or False")
        for name in ("collision_weight", "calibration_rate"):
            require(name, _is_number(getattr(self, name)), "be a finite number")
            object.__setattr__(self, name, float(getattr(self, name)))
        require("calibration_rate", 0 < self.calibration_rate < 1, "lie between 0 and 1")
        bound = self.max_change
        require("max_change", bound is None or (_is_number(bound) and bound > 0), "be a number above 0, or None")
        limit = self.max_slowdown
        require("max_slowdown", limit is None or (_is_number(limit) and limit > 1), "be a number above 1, or None")
        idle = self.engine != "eager" and limit is None
        require("engine", not idle, "measure a max_slowdown; give that, such as 1.05, or leave it out")
        if self.only is not None:
            require("only", not isinstance(self.only, str) and all(isinstance(n, str) for n in self.only), "be names")
            object.__setattr__(self, "only", tuple(self.only))
        if self.version not in (1, 2):
            raise ValueError(f"the configuration has version {self.version}; this icnets reads versions 1 and 2")
        if self.version == 1:
            object.__setattr__(self, "max_change", None)

    @property
    def gain(self) -> float | None:
        """What the gain of a unit is made with: 0 by these warm starts, or None where it has none."""
        calibrated = self.warm_start == "calibrate" and self.max_change is not None
        return 0.0 if self.warm_start == "gain" or calibrated else None

    def without_data(self) -> Self:
        """Returns the same surgery where "calibrate" needs no data, because the weights come from a file."""
        return replace(self, warm_start="none" if self.gain is None else "gain")

    @property
    def measures(self) -> bool:
        """Whether the layers are still to be chosen, by measuring."""
        return self.max_slowdown is not None and self.only is None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dictionary of plain values; those of a budget only where there is one."""
        fields = {**asdict(self), "only": None if self.only is None else list(self.only)}
        bounded = self.max_slowdown is not None or self.only is not None
        return {name: value for name, value in fields.items() if bounded or name not in _BUDGET}
