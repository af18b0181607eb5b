"""From the runs of a comparison to its rows: intervals over seeds, paired differences, a verdict in words."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from icnets.comparison.planned_runs import Entry
from icnets.comparison.runs import Run
from icnets.comparison.settings import Settings
from icnets.comparison.statistics import Interval, shown_interval
from icnets.profile.measure import Count, Latency
from icnets.support.tables import Table


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


def _reached(runs: Sequence[tuple[Run, Run]]) -> Reached:
    """Of pairs of a run with the basic network's of the same seed."""
    hits = [hit for run, basic in runs if (hit := run.first_at_most(basic.history[-1].val_error))]
    if not hits:
        return Reached(None, None, 0, len(runs))
    epochs, seconds = zip(*hits, strict=True)
    return Reached(statistics.median(epochs), statistics.median(seconds), len(hits), len(runs))


def rows(
    entries: Sequence[Entry],
    runs: Mapping[str, Sequence[Run]],
    costs: Mapping[str, Cost],
    confidence: float,
    folds: int | None = None,
) -> list[Row]:
    """One row per entry; differences are paired over the seeds that both have.

    Args:
        entries: the first is the basic network.
        runs: for each entry its runs, by name.
        costs: of each network, by name.
        confidence: of the intervals.
        folds: of a cross-validation, whose overlap widens the intervals; None: the seeds are independent.
    """
    overlap = 0.0 if folds is None else 1 / (folds - 1)

    def pairs(name: str, other: str) -> list[tuple[Run, Run]]:
        by_seed = {run.seed: run for run in runs.get(other, ())}
        return [(run, by_seed[run.seed]) for run in runs[name] if run.seed in by_seed]

    def difference(name: str, other: str) -> Interval | None:
        found = [] if name == other else [a.error - b.error for a, b in pairs(name, other)]
        return shown_interval(found, confidence, overlap) if found else None

    def row(entry: Entry) -> Row:
        name, own = entry.name, runs[entry.name]
        agreements = [run.agreement for run in own if run.agreement is not None]
        to_control = difference(name, entry.control)
        return Row(
            name=name,
            start=entry.start,
            error=_within(shown_interval([run.error for run in own], confidence, overlap)),
            to_basic=difference(name, entry.basic),
            control=None if to_control is None else entry.control,
            to_control=to_control,
            agreement=(statistics.fmean(agreements), min(agreements)) if agreements else None,
            reached=_reached(pairs(name, entry.basic)),
            seconds=statistics.fmean(run.seconds for run in own),
            cost=costs[entry.cell.network],
        )

    return [row(entry) for entry in entries]


def _within(error: Interval) -> Interval:
    """The interval's part that an error can lie in, 0 to 100 %."""
    if error.low is None or error.high is None:
        return error
    return replace(error, low=max(error.low, 0.0), high=min(error.high, 100.0))


def _when(row: Row) -> str:
    hit = row.reached
    if hit.epochs is None or hit.seconds is None:
        return "not reached"
    some = f", {hit.seeds} of {hit.of} seeds" if hit.seeds < hit.of else ""
    if hit.epochs == 0:
        return f"from its start{some}"
    return f"{'+' if row.start != 'scratch' else ''}{hit.epochs:g} ({hit.seconds:.1f} s){some}"


def _agreements(rows: Sequence[Row]) -> list[str]:
    return [
        f"Before its first step, {row.name} gives {rows[0].name}'s answer to {100 * row.agreement[0]:.1f} % of the "
        f"test images (least of all seeds {100 * row.agreement[1]:.1f} %)."
        for row in rows
        if row.agreement is not None and row.cost.parameters.ic
    ]


def _title(settings: Settings, size: int) -> str:
    """What a comparison is of, in a line: the basic network, the data, and how many images and seeds there are."""
    named = map(settings.data.get, ("kind", "root", "train_shards", "hf"))  # the last two of earlier versions
    where = Path(str(next(filter(None, named), "digits"))).resolve().name
    seeds = max(len(part.seeds) for part in settings.parts) if settings.parts else len(settings.seeds)
    return f"{settings.network.name} on {where}, {size} training images, {seeds} seeds"


def too_few(test: int) -> str | None:
    """What to say of so few test images that one of them is more than a percentage point; None: there are enough."""
    if test > 100:
        return None
    return f"One test image is {100 / test:.1f} pp of error: smaller differences can't be seen; give more test images."


def comparison_table(rows: Sequence[Row], settings: Settings, data: Mapping[str, Any]) -> Table:
    """The table that a comparison prints; ``data`` is what results.json says of the data."""
    basic, folds, images = (settings.networks or rows)[0].name, data.get("folds"), data["images"]
    error, latency = rows[0].error, rows[0].cost.latency
    basics = {row.name for row in rows if row.to_basic is None}
    controls = {row.name: row.control for row in rows if row.to_control is not None and row.control not in basics}
    table = []
    for row in rows:
        to_basic, to_control = _signed(row.to_basic), _signed(row.to_control) if row.name in controls else ""
        counts = row.cost.parameters.format(), row.cost.macs.format()
        time = f"{row.cost.latency.ms_per_image:.3f} (×{row.cost.latency.ratio:.2f})"
        table.append((row.name, row.error.format(), to_basic, to_control, *counts, time, _when(row)))
    where = f"{images['test']} test images"
    if folds:
        where += f", folds of {folds}-fold cross-validation (intervals are widened for their overlap)"
    if error.low is None:
        brackets = f"{'Brackets: both values of 2 seeds; an' if error.n == 2 else 'An'} interval takes 3."
    else:
        same = f" {basic}: from scratch, by the same recipe and budget as the row." if settings.parts else ""
        interval = f"{100 * error.confidence:g} % t interval over {error.n} seeds"
        brackets = f"Brackets: {interval}; differences are paired by seed, not corrected for the number of rows.{same}"
    notes = [
        f"Error: {where}. {brackets}",
        too_few(images["test"]),
        f"Control: {'; '.join(f'{c} for {n}' for n, c in controls.items())}." if controls else None,
        f"(IC): the part that collisions add. ms/image: batch {latency.batch_size}, {latency.threads} thread(s), "
        f"eager, forward; × against {basic} in the same {latency.rounds} interleaved rounds.",
        f"To {basic}'s accuracy: first epoch (and seconds of training) with {basic}'s final validation error or less, "
        "median over seeds; + counts from a warm start.",
        *_agreements(rows),
    ]
    costs = ("parameters (IC)", "MACs (IC)", "ms/image", f"epochs to {basic}'s accuracy")
    columns = ("method", "error, %", f"− {basic}, pp", "− control, pp", *costs)
    return Table(_title(settings, images["train"]), columns, table, [note for note in notes if note])


def provisional(rows: Sequence[Row], title: str) -> Table:
    """What there is while a comparison runs: each method's error, and the difference to its control, with the seeds."""
    cells = [(row.name, row.error.format(), _signed(row.to_control), str(row.error.n)) for row in rows]
    return Table(title, ("method", "error, %", "− control, pp", "seeds"), cells)


def _signed(difference: Interval | None) -> str:
    return "" if difference is None else difference.format(signed=True)
