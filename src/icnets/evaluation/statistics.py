"""Means with Student's t intervals, and differences paired by seed. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "paired_difference", "t_interval", "t_quantile"]


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


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of ``values`` with Student's t interval, which takes them for independent draws of a normal distribution.

    Raises ValueError for no values at all, or a value that isn't finite.
    """
    if not values:
        raise ValueError("values is empty; a mean needs at least one")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"values are {list(values)}; each must be a finite number")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, None, 1, confidence)
    half = t_quantile(confidence, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, confidence)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of ``a[i] - b[i]``, where entry i of both was measured under seed i.

    Raises ValueError for different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b has {len(b)}; pairs need one of each per seed")
    return t_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
