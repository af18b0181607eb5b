"""What the table says in words, by a rule: of each IC network against its control, and what a user should do."""

import math
from collections.abc import Sequence

from icnets.comparison.comparison_table import Row
from icnets.comparison.statistics import Interval, t_quantile
from icnets.support.text import counted

_SEEDS = 30  # that somebody might still train
_SLOWER, _LARGER = 1.05, 1.02  # from here on, cost is worth a word


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence for each network with collisions, against its control, read off the interval and nothing else."""
    return [f"{row.name} against {row.control}: {_points(gain)}: {_told(gain)}" for row, gain in _asked(rows)]


def recommendation(rows: Sequence[Row], minutes_a_seed: float) -> str:
    """One sentence: keep, don't, or can't tell.

    Keep: an IC network has fewer errors than its control, with the interval of the difference clear of 0. Don't: the
    intervals of all are clear of any gain, or so near 0 that more than 30 seeds would be needed. Otherwise: how many
    more seeds it would take, if the difference and its deviation are what they seem.

    Args:
        rows: of the table; those with collisions and a control are asked.
        minutes_a_seed: that all methods take for one more seed.
    """

    def more(seeds: int) -> str:
        minutes = max(1, round(seeds * minutes_a_seed))
        return f"about {counted(seeds, 'more seed')}, {counted(minutes, 'minute')},"

    asked = _asked(rows)
    if not asked:
        return "Can't tell: no IC network and its control have run on the same seed yet; let the comparison go on."
    better = [(row, gain) for row, gain in asked if gain.excludes_zero and gain.mean < 0]
    if better:
        row, gain = min(better, key=lambda pair: pair[0].error.mean)
        return f"Keep {row.name}: {_points(gain)} against {row.control}, with {gain.n} seeds{_cost(row)}."
    known = [(row, gain) for row, gain in asked if gain.low is not None]
    if not known:
        missing = 3 - max(gain.n for _, gain in asked)
        return f"Can't tell: an interval takes at least 3 seeds; {more(missing)} would be the first."
    row, gain = min(known, key=lambda pair: pair[1].mean)
    if gain.low == gain.high == 0:
        same = f"{row.name} errs just as {row.control} does"
        return f"Can't tell: {same}; train longer, or with a larger training.new_lr."
    needed = _needed(gain)
    if needed is not None:
        gap = f"{row.name} against {row.control} is {_points(gain)}"
        return f"Can't tell: {gap}; if that is its size, {more(needed - gain.n)} would show it."
    why = f"is the best of the IC networks, and no gain can be seen against {row.control}"
    return f"Don't: {row.name} {why} ({_points(gain)}){_cost(row)}."


def _asked(rows: Sequence[Row]) -> list[tuple[Row, Interval]]:
    """The rows with collisions, each with its difference to its control."""
    return [(row, row.to_control) for row in rows if row.cost.parameters.ic and row.to_control is not None]


def _points(gain: Interval) -> str:
    return f"{gain.format(signed=True)} pp of error"


def _told(gain: Interval) -> str:
    seeds = counted(gain.n, "seed")
    if gain.low is None:
        number = "one seed" if gain.n == 1 else "two seeds"
        return f"{number} can't tell a difference from chance (it takes ≥ 3 seeds)"
    if not gain.excludes_zero:
        return f"not distinguishable with {seeds}"
    return f"{'fewer' if gain.mean < 0 else 'more'} errors, with {seeds}"


def _cost(row: Row) -> str:
    """What it costs, where that is worth a word."""
    time, parameters = row.cost.latency.ratio, row.cost.parameters
    more = parameters.total / (parameters.total - parameters.ic)
    ratios = ((time, _SLOWER, "time per image"), (more, _LARGER, "parameters"))
    words = [f"×{ratio:.2f} the {what}" for ratio, least, what in ratios if ratio >= least]
    return f", at {' and '.join(words) or 'the same time per image and size'}"


def _needed(gain: Interval) -> int | None:
    """Seeds with which a gain of this mean and deviation has an interval clear of 0; None: more than 30, or no gain."""
    assert gain.high is not None

    def half(n: int) -> float:
        """Half of the interval's width over n seeds, in deviations."""
        return t_quantile(gain.confidence, n - 1) / math.sqrt(n)

    deviation = (gain.high - gain.mean) / half(gain.n)
    return next((n for n in range(gain.n + 1, _SEEDS + 1) if deviation * half(n) < -gain.mean), None)
