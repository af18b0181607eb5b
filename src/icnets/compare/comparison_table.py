"""From the runs of a comparison to its rows: intervals over seeds, paired differences, a verdict in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icnets.compare.methods import Method
from icnets.compare.plots import Curve
from icnets.compare.runs import Run
from icnets.compare.statistics import Interval, paired_difference, t_interval
from icnets.profile.measure import Count, Latency
from icnets.support.tables import Table, human

__all__ = ["Cost", "Reached", "Row", "comparison_table", "curves", "rows", "title_of", "verdicts"]


@dataclass(frozen=True)
class Cost:
    """What one network costs; MACs and time are per image."""

    parameters: Count
    macs: Count
    latency: Latency


@dataclass(frozen=True)
class Reached:
    """When validation first was at least as good as the basic network's last: medians over the seeds that got there."""

    epochs: float | None
    seconds: float | None
    seeds: int
    of: int


@dataclass(frozen=True)
class Row:
    """One method over all seeds. Errors and differences are in per cent and percentage points of the test images.

    ``agreement``: mean and least over seeds of the share in [0, 1] of test images to which the network, before its
    first step, gives the basic network's answer. ``seconds``: of training, mean over seeds.
    """

    name: str
    start: str
    error: Interval
    to_basic: Interval | None
    control: str | None
    to_control: Interval | None
    agreement: tuple[float, float] | None
    reached: Reached
    seconds: float
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _reached(runs: Sequence[Run], basic: Sequence[Run]) -> Reached:
    hits = [hit for run, base in zip(runs, basic, strict=True) if (hit := run.first_at_most(base.last_error))]
    if not hits:
        return Reached(None, None, 0, len(runs))
    epochs, seconds = zip(*hits, strict=True)
    return Reached(statistics.median(epochs), statistics.median(seconds), len(hits), len(runs))


def rows(
    methods: Sequence[Method], runs: Mapping[str, Sequence[Run]], costs: Mapping[str, Cost], confidence: float
) -> list[Row]:
    """One row per method.

    Args:
        methods: the first is the basic network.
        runs: for each method its runs, in the same order of seeds.
        costs: for each method.
        confidence: of the intervals.
    """
    errors = {name: [run.error for run in own] for name, own in runs.items()}
    basic = methods[0].name
    result = []
    for method in methods:
        name, is_basic = method.name, method.name == basic
        control = None if is_basic else method.control or basic
        agreements = [run.agreement for run in runs[name] if run.agreement is not None]
        result.append(
            Row(
                name=name,
                start=method.start,
                error=t_interval(errors[name], confidence),
                to_basic=None if is_basic else paired_difference(errors[name], errors[basic], confidence),
                control=control,
                to_control=None if not control else paired_difference(errors[name], errors[control], confidence),
                agreement=(statistics.fmean(agreements), min(agreements)) if agreements else None,
                reached=_reached(runs[name], runs[basic]),
                seconds=statistics.fmean(run.seconds for run in runs[name]),
                cost=costs[name],
            )
        )
    return result


def _count(count: Count) -> str:
    return human(count.total) + (f" ({human(count.ic)})" if count.ic else "")


def _when(row: Row) -> str:
    hit = row.reached
    if hit.epochs is None or hit.seconds is None:
        return "not reached"
    some = f", {hit.seeds} of {hit.of} seeds" if hit.seeds < hit.of else ""
    if hit.epochs == 0:
        return f"from its start{some}"
    return f"{'+' if row.start == 'basic' else ''}{hit.epochs:g} ({hit.seconds:.1f} s){some}"


def _agreements(rows: Sequence[Row]) -> list[str]:
    shares: dict[tuple[float, float], list[str]] = {}
    for row in rows:
        if row.agreement is not None and row.cost.parameters.ic:
            shares.setdefault(row.agreement, []).append(row.name)
    return [
        f"Before its first step, {' or '.join(names)} gives {rows[0].name}'s answer to {100 * mean:.1f} % of the test "
        f"images (least of all seeds {100 * least:.1f} %)."
        for (mean, least), names in shares.items()
    ]


def title_of(network: str, root: Path | None, train: int, seeds: int) -> str:
    """What a comparison is of, in a line: the basic network, the images, and how many there are."""
    where = "digits" if root is None else root.resolve().name
    return f"{network} on {where}, {train} training images, {seeds} seeds"


def comparison_table(rows: Sequence[Row], title: str, data: str) -> Table:
    """The table that a comparison prints; ``data`` says in a few words what the error was measured on."""
    confidence, basic = rows[0].error.confidence, rows[0].name
    table = []
    for row in rows:
        same = row.control in (None, basic)
        table.append(
            (
                row.name,
                row.error.format(),
                "" if row.to_basic is None else row.to_basic.format(signed=True),
                "" if same or row.to_control is None else row.to_control.format(signed=True),
                _count(row.cost.parameters),
                _count(row.cost.macs),
                f"{row.cost.latency.ms_per_image:.3f} (×{row.cost.latency.ratio:.2f})",
                _when(row),
            )
        )
    latency = rows[0].cost.latency
    controls = {row.name: row.control for row in rows if row.control not in (None, basic)}
    notes = [
        f"Error: {data}. Brackets: {100 * confidence:g} % t interval over {rows[0].error.n} seeds; differences are "
        "paired by seed, not corrected for the number of rows.",
        *([f"Control: {'; '.join(f'{c} for {n}' for n, c in controls.items())}."] if controls else []),
        f"(IC): the part that collisions add. ms/image: batch {latency.batch_size}, {latency.threads} thread(s), "
        f"eager, forward; × against {basic} in the same {latency.rounds} interleaved rounds.",
        f"To {basic}'s accuracy: first epoch (and seconds of training) with {basic}'s final validation error or less, "
        "median over seeds; + counts from a warm start.",
        *_agreements(rows),
    ]
    columns = ("method", "error, %", f"− {basic}, pp", "− control, pp", "parameters (IC)", "MACs (IC)", "ms/image")
    return Table(title, (*columns, f"epochs to {basic}'s accuracy"), table, notes)


def _verdict(row: Row) -> str:
    difference = row.to_control
    assert difference is not None
    start = f"{row.name} against {row.control}: {difference.format(signed=True)} pp of error: "
    seeds = f"{difference.n} seed{'s' * (difference.n > 1)}"
    if difference.low is None:
        return start + "one seed can't tell a difference from chance (it takes ≥ 3 seeds)"
    if not difference.excludes_zero:
        return start + f"not distinguishable with {seeds}"
    return start + f"{'fewer' if difference.mean < 0 else 'more'} errors, with {seeds}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence for each network with collisions, against its control, read off the interval and nothing else."""
    return [_verdict(row) for row in rows if row.cost.parameters.ic and row.to_control is not None]


def curves(methods: Sequence[Method], runs: Mapping[str, Sequence[Run]], *, loss: bool = False) -> list[Curve]:
    """Validation error, or the mean training ``loss`` of each epoch, while training.

    A warm start counts on from the end of the basic network's training.
    """
    basic = runs[methods[0].name]
    before = len(basic[0].history)
    seconds_before = statistics.median(run.history[-1].seconds for run in basic)
    result: list[Curve] = []
    for method in methods:
        own, warm = runs[method.name], method.start == "basic"
        epochs = [e.epoch + (before if warm else 0) for e in own[0].history]
        seconds = [statistics.median(e) for e in zip(*([h.seconds for h in run.history] for run in own), strict=True)]
        seconds = [s + (seconds_before if warm else 0.0) for s in seconds]
        errors = [[e.train_loss if loss else e.val_error for e in run.history] for run in own]
        starts = [run.start_error for run in own if run.start_error is not None and not loss]
        if warm and len(starts) == len(own):
            epochs, seconds = [before, *epochs], [seconds_before, *seconds]
            errors = [[first, *error] for first, error in zip(starts, errors, strict=True)]
        unit = method.network or ("IC" if method.ic else "basic")
        group, dash = f"{unit}{' + WLD' if method.wld else ''}", int(warm)
        while (group, dash) in [(curve.group, curve.dash) for curve in result]:
            dash += 2
        result.append(Curve(method.name, group, epochs, errors, seconds, dash))
    return result
