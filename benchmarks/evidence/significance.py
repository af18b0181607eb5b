"""Paired differences with their p values, and Holm's correction for the number of these."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from icnets.comparison.statistics import Interval, t_interval

__all__ = ["differences", "holm", "paired_difference", "paired_p"]


def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """``a[i] - b[i]``; raises ValueError for different lengths."""
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b has {len(b)}; pairs need one of each per seed")
    return [x - y for x, y in zip(a, b, strict=True)]


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, overlap: float = 0.0
) -> Interval:
    """Interval of the mean of ``a[i] - b[i]``, where entry i of both was measured under seed i.

    ``overlap`` as for :func:`icnets.comparison.statistics.t_interval`. Raises ValueError for different lengths.

    Example:
        >>> paired_difference([5.0, 4.0, 6.0], [4.0, 3.5, 5.5]).format(signed=True)
        '+0.67 [−0.05, +1.38]'
    """
    return t_interval(differences(a, b), confidence, overlap)


def paired_p(a: Sequence[float], b: Sequence[float], overlap: float = 0.0) -> float | None:
    """Two-sided p of the paired t test of equal means; None for a single pair.

    ``overlap`` as for :func:`icnets.comparison.statistics.t_interval`. Raises ValueError for different lengths
    or no pairs.
    """
    from scipy.special import stdtr

    found = differences(a, b)
    mean = t_interval(found).mean
    if len(found) == 1:
        return None
    spread = statistics.stdev(found) * math.sqrt(1 / len(found) + overlap)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(len(found) - 1, -abs(mean) / spread))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's step-down correction for as many tests as there are; None stays None and isn't counted."""
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    result: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (values[i] or 0.0)))
        result[i] = largest
    return result
