"""What the lines of a study say: figures by cell of its grid, and comparisons paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from icnets.comparison.statistics import Interval, t_interval
from icnets.distill.loss import DistillationSchedule
from significance import holm, paired_difference, paired_p

__all__ = ["Cell", "Comparison", "Results"]

_PLACES = 1000  # at which a schedule is looked at
_SAME = 1e-3  # percentage points; validation errors are kept with four digits


@dataclass(frozen=True)
class Cell:
    """One cell of a study's grid, without the seed."""

    network: str
    method: str = "scratch"
    recipe: str = "plain"
    budget: float = 1.0

    @property
    def kind(self) -> Cell:
        """What cells of all budgets share: this one with the whole budget."""
        return replace(self, budget=1.0)


@dataclass(frozen=True)
class Comparison:
    """A difference between two cells, paired by seed: in percentage points, ``p`` as it is and after Holm."""

    difference: Interval
    p: float | None
    p_holm: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the difference is clear of 0 after the correction: p < 1 - confidence."""
        return self.p_holm is not None and self.p_holm < 1 - self.difference.confidence


class Results:
    """The lines of one study.

    Args:
        lines: as :func:`icnets.comparison.lines.read` gives them.

    Raises:
        ValueError: there is no header among them.
    """

    def __init__(self, lines: Iterable[dict[str, Any]]) -> None:
        lines = list(lines)
        headers = [line for line in lines if line["kind"] == "study"]
        if len(headers) != 1:
            raise ValueError(f"the lines have {len(headers)} headers of a study; a file has exactly one")
        self.header = headers[0]
        self.networks = {line["name"]: line for line in lines if line["kind"] == "network"}
        self.runs: dict[Cell, dict[int, dict[str, Any]]] = {}
        for line in lines:
            if line["kind"] == "run":
                cell = Cell(line["network"], line["method"], line["recipe"], line["budget"])
                self.runs.setdefault(cell, {})[line["seed"]] = line
        folds = self.header["folds"]
        self.overlap = 0.0 if folds is None else 1 / (folds - 1)

    @property
    def name(self) -> str:
        """Of the study."""
        return str(self.header["name"])

    def basic(self, cell: Cell) -> Cell:
        """The basic network from scratch under the same recipe and budget."""
        return replace(cell, network=self.header["basic"], method="scratch")

    def values(self, cell: Cell, figure: str = "accuracy") -> dict[int, float]:
        """A test figure by seed: accuracy (per cent), loss (nats), auc (per cent); seconds of training."""
        return {seed: _figure(run, figure) for seed, run in sorted(self.runs.get(cell, {}).items())}

    def interval(self, cell: Cell, figure: str = "accuracy", seeds: Sequence[int] | None = None) -> Interval:
        """Mean with its 95 % interval, over all seeds of the cell or those given."""
        values = self.values(cell, figure)
        return t_interval([values[s] for s in (values if seeds is None else seeds)], overlap=self.overlap)

    def common(self, cells: Iterable[Cell]) -> list[int]:
        """Seeds that all of these cells have."""
        own = [self.runs.get(cell, {}).keys() for cell in cells]
        return sorted(set.intersection(*map(set, own))) if own else []

    def compare(self, a: Cell, b: Cell, figure: str = "accuracy") -> Comparison | None:
        """``a`` less ``b`` over the seeds that both have; None where there is none, or for a cell with itself."""
        ours, theirs = self.values(a, figure), self.values(b, figure)
        seeds = sorted(ours.keys() & theirs.keys())
        if a == b or not seeds:
            return None
        pair = [ours[s] for s in seeds], [theirs[s] for s in seeds]
        return Comparison(paired_difference(*pair, overlap=self.overlap), paired_p(*pair, overlap=self.overlap))

    def family(self, pairs: Sequence[tuple[Cell, Cell]], figure: str = "accuracy") -> list[Comparison | None]:
        """Comparisons that are read together: p values corrected for their number by Holm's method."""
        found = [self.compare(a, b, figure) for a, b in pairs]
        corrected = holm([None if c is None else c.p for c in found])
        return [None if c is None else replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]

    def time(self, cell: Cell, epochs: float | None = None) -> float:
        """Time of training, or of its first ``epochs``, in units of the basic network's whole training.

        Epochs times the measured time of a step, both beside the basic network's: runs side by side take each other's
        time, so their own seconds tell little. Where a teacher teaches, its forward pass and the loss are in the step.
        Lines in which no step was measured have the time of a forward pass in its place.
        """
        total = float(len(next(iter(self.runs[cell].values()))["val_error"]))
        whole = total / cell.budget
        taught = min(self._taught(cell.method) * total, total if epochs is None else epochs)
        line = self.networks[cell.network]
        step = line["step"] if "step" in line else line["latency"]
        plain, with_teacher = step["ratio"], line.get("step_taught", step)["ratio"]
        return float(((total if epochs is None else epochs) - taught) * plain + taught * with_teacher) / whole

    def _taught(self, method: str) -> float:
        """Fraction of a training in which the teacher's forward pass is needed; at most, where it may stop itself."""
        wld = next((m["wld"] for m in self.header["methods"] if m["name"] == method), None)
        if not wld:
            return 0.0
        schedule = DistillationSchedule(**wld["schedule"])
        return sum(schedule(i / _PLACES) > 0 for i in range(_PLACES)) / _PLACES

    def reached(self, cell: Cell, target: Cell) -> tuple[float, int, int] | None:
        """When validation first was as good as ``target``'s at its end, paired by seed.

        Returns:
            Epochs, as the median over the seeds that got there, their number, and that of all seeds; None where no
            seed got there.
        """
        ours, theirs = self.runs.get(cell, {}), self.runs.get(target, {})
        seeds = sorted(ours.keys() & theirs.keys())
        hits = [hit for s in seeds if (hit := _first(ours[s], theirs[s]["val_error"][-1])) is not None]
        if not hits:
            return None
        return statistics.median(hits), len(hits), len(seeds)


def _figure(run: dict[str, Any], figure: str) -> float:
    if figure == "accuracy":
        return float(100 - run["test"]["error"])
    if figure == "seconds":
        return float(run["seconds"])
    return float(run["test"][figure]) * (100 if figure == "auc" else 1)


def _first(run: dict[str, Any], error: float) -> float | None:
    if run.get("start_error", 101.0) <= error + _SAME:
        return 0.0
    return next((i + 1.0 for i, e in enumerate(run["val_error"]) if e <= error + _SAME), None)
