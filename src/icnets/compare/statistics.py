"""Means with Student's t intervals, differences paired by seed, Holm's correction. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "holm", "paired_difference", "paired_p", "t_interval", "t_quantile"]


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values and its confidence interval; one value alone has no interval (low = high = None)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    confidence: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; False where there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def format(self, digits: int = 2, *, signed: bool = False) -> str:
        """The text ``mean [low, high]``; with ``signed``, every number carries its sign."""

        def number(value: float) -> str:
            text = f"{value:{'+' if signed else ''}.{digits}f}"
            zero = float(text) == 0
            return (f"{0:.{digits}f}" if zero else text).replace("-", "−")

        if self.low is None or self.high is None:
            return number(self.mean)
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


def _central_probability(t: float, df: int) -> float:
    # P(|T| < t) for whole degrees of freedom: the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    theta = math.atan(t / math.sqrt(df))
    cosine2 = math.cos(theta) ** 2
    term = total = 1.0
    for k in range(2 + df % 2, df - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    if df % 2 == 0:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + (math.sin(theta) * math.cos(theta) * total if df > 1 else 0.0))


def t_quantile(confidence: float, df: int) -> float:
    """The t with P(|T| < t) = ``confidence`` for Student's distribution with ``df`` degrees of freedom.

    Raises ValueError unless 0 < confidence < 1 and df >= 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if df < 1:
        raise ValueError(f"df is {df}; an interval needs at least 1 degree of freedom, that is, 2 values")
    low, high = 0.0, 1.0
    while _central_probability(high, df) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, df) < confidence else (low, middle)
    return (low + high) / 2


def t_interval(values: Sequence[float], confidence: float = 0.95, overlap: float = 0.0) -> Interval:
    """Mean of ``values`` with Student's t interval, which takes them for independent draws of a normal distribution.

    Args:
        values: at least one.
        confidence: of the interval.
        overlap: test over training examples where the values come from the folds of a cross-validation, whose training
            sets overlap: 1 / (k - 1) for k folds. The variance of the mean is then taken as s² (1/n + overlap)
            (Nadeau and Bengio, "Inference for the Generalization Error", 2003). 0 for independent values.

    Raises ValueError for no values at all, or a value that isn't finite.
    """
    if not values:
        raise ValueError("values is empty; a mean needs at least one")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"values are {list(values)}; each must be a finite number")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, None, 1, confidence)
    half = t_quantile(confidence, n - 1) * statistics.stdev(values) * math.sqrt(1 / n + overlap)
    return Interval(mean, mean - half, mean + half, n, confidence)


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b has {len(b)}; pairs need one of each per seed")
    return [x - y for x, y in zip(a, b, strict=True)]


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, overlap: float = 0.0
) -> Interval:
    """Interval of the mean of ``a[i] - b[i]``, where entry i of both was measured under seed i.

    ``overlap`` as for :func:`t_interval`. Raises ValueError for different lengths.
    """
    return t_interval(_differences(a, b), confidence, overlap)


def paired_p(a: Sequence[float], b: Sequence[float], overlap: float = 0.0) -> float | None:
    """Two-sided p of the paired t test of equal means; None for a single pair.

    ``overlap`` as for :func:`t_interval`. Raises ValueError for different lengths or no pairs.
    """
    differences = _differences(a, b)
    mean = t_interval(differences).mean
    if len(differences) == 1:
        return None
    spread = statistics.stdev(differences) * math.sqrt(1 / len(differences) + overlap)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return max(0.0, 1 - _central_probability(abs(mean) / spread, len(differences) - 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's step-down correction for as many tests as there are; None stays None and isn't counted."""
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    result: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (values[i] or 0.0)))
        result[i] = largest
    return result
