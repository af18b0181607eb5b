"""What a user should do, read off the table by a rule: keep the IC network, don't, or what it takes to tell."""

import math
from collections.abc import Sequence

from icnets.comparison.comparison_table import Row
from icnets.comparison.statistics import t_quantile

_SEEDS = 30  # that somebody might still train
_SLOWER, _LARGER = 1.05, 1.02  # from here on, cost is worth a word


def recommendation(rows: Sequence[Row], minutes_a_seed: float) -> str:
    """One sentence: keep, don't, or can't tell.

    Keep: an IC network has fewer errors than its control, with the interval of the difference clear of 0. Don't: the
    intervals of all are clear of any gain, or so near 0 that more than 30 seeds would be needed. Otherwise: how many
    more seeds it would take, if the difference and its deviation are what they seem.

    Args:
        rows: of the table; those with collisions and a control are asked.
        minutes_a_seed: that all methods take for one more seed.
    """
    asked = [row for row in rows if row.cost.parameters.ic and row.to_control is not None]
    if not asked:
        return "Can't tell: no IC network and its control have run on the same seed yet; let the comparison go on."
    better = [row for row in asked if _clear(row) and row.to_control.mean < 0]  # type: ignore[union-attr]
    if better:
        return _keep(min(better, key=lambda row: row.error.mean))
    few = max(asked, key=lambda row: row.to_control.n)  # type: ignore[union-attr]
    if few.to_control is not None and few.to_control.low is None:
        more = 3 - few.to_control.n
        return f"Can't tell: an interval takes at least 3 seeds; {_more(more, minutes_a_seed)} would be the first."
    best = min(asked, key=lambda row: row.to_control.mean)  # type: ignore[union-attr]
    needed = 0 if _clear(best) or best.to_control is None else _needed(best)
    if _clear(best) or best.to_control is None or best.to_control.mean >= 0 or needed > _SEEDS:
        return _dont(best)
    more = needed - best.to_control.n
    gain = best.to_control.format(signed=True)
    return (
        f"Can't tell: {best.name} against {best.control} is {gain} pp of error; if that is its size, "
        f"{_more(max(more, 1), minutes_a_seed)} would show it."
    )


def _clear(row: Row) -> bool:
    return row.to_control is not None and row.to_control.excludes_zero


def _keep(row: Row) -> str:
    difference = row.to_control
    assert difference is not None
    return (
        f"Keep {row.name}: {difference.format(signed=True)} pp of error against {row.control}, with {difference.n} "
        f"seeds{_cost(row)}."
    )


def _dont(row: Row) -> str:
    difference = row.to_control
    assert difference is not None
    why = "is the best of the IC networks, and no gain can be seen"
    return f"Don't: {row.name} {why} against {row.control} ({difference.format(signed=True)} pp of error){_cost(row)}."


def _cost(row: Row) -> str:
    """What it costs, where that is worth a word."""
    time, parameters = row.cost.latency.ratio, row.cost.parameters
    more = parameters.total / (parameters.total - parameters.ic)
    words = [f"×{time:.2f} the time per image"] * (time >= _SLOWER) + [f"×{more:.2f} the parameters"] * (
        more >= _LARGER
    )
    return f", at {' and '.join(words)}" if words else ", at the same time per image and size"


def _needed(row: Row) -> int:
    """Seeds with which a difference of this mean and deviation has an interval clear of 0."""
    difference = row.to_control
    assert difference is not None
    assert difference.high is not None
    if difference.mean == 0:
        return _SEEDS + 1
    half = (difference.high - difference.mean) / t_quantile(difference.confidence, difference.n - 1)
    deviation = half * math.sqrt(difference.n)
    fits = (
        n for n in range(difference.n + 1, _SEEDS + 1) if _half(deviation, n, difference.confidence) < -difference.mean
    )
    return next(fits, _SEEDS + 1)


def _half(deviation: float, n: int, confidence: float) -> float:
    return t_quantile(confidence, n - 1) * deviation / math.sqrt(n)


def _more(seeds: int, minutes_a_seed: float) -> str:
    minutes = seeds * minutes_a_seed
    time = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    return f"about {seeds} more seed{'s' * (seeds > 1)}, {time},"
