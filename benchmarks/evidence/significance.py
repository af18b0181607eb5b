"""p values of paired differences, and Holm's correction for their number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from icnets.comparison.statistics import differences, t_interval

__all__ = ["holm", "paired_p"]


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
