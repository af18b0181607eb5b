"""Means with Student's t intervals, and differences paired by seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values and its confidence interval; one value alone has no interval (low = high = None).

    ``least`` and ``most``: of values that are shown instead of an interval.

    Example:
        >>> Interval(-0.3, -0.9, 0.3, 5).format(1, signed=True)
        '−0.3 [−0.9, +0.3]'
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    confidence: float = 0.95
    least: float | None = None
    most: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; False where there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def format(self, digits: int = 2, *, signed: bool = False) -> str:
        """The text ``mean [low, high]``; with ``signed``, every number carries its sign."""

        def number(value: float) -> str:
            text = f"{value:{'+' if signed else ''}.{digits}f}"
            return (f"{0:.{digits}f}" if float(text) == 0 else text).replace("-", "−")

        for low, high, shape in ((self.low, self.high, "{} [{}, {}]"), (self.least, self.most, "{} ({} and {})")):
            if low is not None and high is not None:
                return shape.format(*map(number, (self.mean, low, high)))
        return number(self.mean)


def t_quantile(confidence: float, df: int) -> float:
    """The t with P(|T| < t) = ``confidence`` for Student's distribution with ``df`` degrees of freedom.

    It is NaN unless 0 < confidence < 1 and df >= 1.

    Example:
        >>> round(t_quantile(0.95, 4), 3)
        2.776
    """
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + confidence / 2))


def t_interval(values: Sequence[float], confidence: float = 0.95, overlap: float = 0.0) -> Interval:
    """Mean of ``values`` with Student's t interval, which takes them for independent draws of a normal distribution.

    Args:
        values: at least one.
        confidence: of the interval.
        overlap: test over training examples where the values come from the folds of a cross-validation, whose training
            sets overlap: 1 / (k - 1) for k folds. The variance of the mean is then taken as s² (1/n + overlap)
            (Nadeau and Bengio, "Inference for the Generalization Error", 2003). 0 for independent values.

    Raises ValueError for no values at all.

    Example:
        >>> t_interval([4.6, 5.0, 5.1]).format()
        '4.90 [4.24, 5.56]'
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, None, 1, confidence)
    half = t_quantile(confidence, n - 1) * statistics.stdev(values) * math.sqrt(1 / n + overlap)
    return Interval(mean, mean - half, mean + half, n, confidence)


def shown_interval(values: Sequence[float], confidence: float = 0.95, overlap: float = 0.0) -> Interval:
    """:func:`t_interval`, but two values are shown as they are: their interval would be 13 times as wide as they lie.

    Example:
        >>> shown_interval([4.0, 5.0]).format()
        '4.50 (4.00 and 5.00)'
    """
    found = t_interval(values, confidence, overlap)
    if found.n != 2:
        return found
    return Interval(found.mean, None, None, 2, confidence, min(values), max(values))
