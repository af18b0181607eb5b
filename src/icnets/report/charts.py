"""The figures of a report that are made from numbers alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from statistics import fmean, median_high
from typing import Any

from icnets.compare.comparison_table import Row
from icnets.compare.plots import COLOURS, Curve, as_label, draw_curves
from icnets.report.figures import INK, Figure, draw

MARKERS = "osD^vP*X<>hd"
_WITH_LEGEND = (5.2, 4.6)  # inches


def _legend(axes: Any) -> None:
    """Below the axes, where it hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def curve_charts(curves: Sequence[Curve], quantity: str, *, remark: str = "") -> list[Figure]:
    """``quantity``, such as "validation error, %", by epoch and by second.

    Drawn is the mean over seeds, with its 95 % interval where there are three or more: that of two would hide the rest.
    ``remark`` ends the caption.
    """
    shown = ["", ": mean over seeds", ": mean over seeds, and its 95 % interval"][min(len(curves[0].errors) - 1, 2)]
    what, _, unit = quantity.partition(", ")
    final = {c.name: fmean(seed[-1] for seed in c.errors) for c in curves}
    words = "; ".join(f"{name} ends at {error:.2f}" for name, error in final.items())

    def paint(axes: Any, x: str, label: str) -> None:
        drawn = draw_curves(axes, curves, x, band=3, ink=INK)
        # The lines fill the picture, not the bands, which are wide where seeds are few.
        axes.set(xlabel=label, ylabel=quantity, ylim=(0.8 * min(drawn), 1.25 * max(drawn) or 1))
        axes.xaxis.get_major_locator().set_params(integer=label == "epoch")
        if min(drawn) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        _legend(axes)

    return [
        draw(
            f"{what.replace(' ', '-')}-{x}",
            partial(paint, x=x, label=label),
            size=_WITH_LEGEND,
            alt=f"{what.capitalize()} in {'per cent' if unit == '%' else unit} by {label}. {words}.",
            caption=f"{what.capitalize()} by {label}{shown}.{remark}",
        )
        for x, label in (("epochs", "epoch"), ("seconds", "seconds of training"))
    ]


def cost_chart(rows: Sequence[Row], cost: str) -> Figure:
    """Test error against "time" or "macs" per image, every method a mark with its interval."""
    label = {"time": "ms per image, forward", "macs": "million MACs per image"}[cost]

    def at(row: Row) -> float:
        return row.cost.latency.ms_per_image if cost == "time" else row.cost.macs.total / 1e6

    def paint(axes: Any) -> None:
        span = max(map(at, rows)) - min(map(at, rows)) or at(rows[0])
        for i, row in enumerate(rows):
            e, dodge = row.error, 0.008 * span * (i - len(rows) // 2)  # networks of the same cost stay apart
            bars = None if e.low is None or e.high is None else [[e.mean - e.low], [e.high - e.mean]]
            colour = COLOURS[i % len(COLOURS)] if i else INK
            look = {"color": colour, "fmt": MARKERS[i % len(MARKERS)], "markersize": 8}
            axes.errorbar([at(row) + dodge], [e.mean], yerr=bars, label=as_label(row.name), **look)
        axes.set(xlabel=label, ylabel="test error, %")
        axes.margins(x=0.15)
        _legend(axes)

    points = "; ".join(f"{row.name}: {row.error.format()} % at {at(row):.3g}" for row in rows)
    return draw(
        f"cost-{cost}",
        paint,
        size=_WITH_LEGEND,
        alt=f"Test error in per cent against {label}. {points}.",
        caption=f"Test error against {label}: lower and further left is better. Bars: intervals over seeds.",
    )


def confusion_chart(counts: Sequence[Sequence[int]], names: Sequence[str], title: str) -> Figure:
    """Rows: the images' classes; columns: the network's answers; shading by share of the row, off the diagonal."""
    size = len(counts)
    shares = [[c / max(sum(row), 1) for c in row] for row in counts]
    places = [(i, j) for i, j in product(range(size), repeat=2) if counts[i][j]]
    labels = [as_label(name, 14) for name in names]
    most = max(0.05, *(s for i, row in enumerate(shares) for j, s in enumerate(row) if i != j))

    def paint(axes: Any) -> None:
        wrong = [[float("nan") if i == j else s for j, s in enumerate(row)] for i, row in enumerate(shares)]
        axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=most)
        for i, j in places if size <= 12 else []:
            # Off the diagonal the ground is orange in dark mode too.
            colour = INK if i == j else "#ffffff" if shares[i][j] > 0.6 * most else "#000000"
            axes.text(j, i, str(counts[i][j]), ha="center", va="center", fontsize=9, color=colour)
        step = -(-size // 30)
        axes.set_xticks(range(0, size, step), labels[::step], rotation=90, fontsize=8)
        axes.set_yticks(range(0, size, step), labels[::step], fontsize=8)
        axes.set(xlabel="answer", ylabel="class")
        axes.grid(visible=False)

    pairs = sorted(((counts[i][j], i, j) for i, j in places if i != j), reverse=True)
    worst = "; ".join(f"{names[i]} taken for {names[j]}: {n}" for n, i, j in pairs[:5])
    total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(size))
    return draw(
        "confusion",
        paint,
        alt=f"Confusion matrix of {title}: {right} of {total} right. {worst or 'No confusions'}.",
        caption=f"{title}: {right} of {total} test images right. Shading: share of a class's images with that answer.",
        size=(5.2, 4.7),
    )


Values = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def _layer_chart(name: str, layers: Values, *, label: str, alt: str, caption: str) -> Figure:
    """A row for each layer with its values before training and after: median, quartiles and extremes."""

    def paint(axes: Any) -> None:
        for when, colour, mark, shift in (
            ("before training", COLOURS[3], "o", -0.15),
            ("after", COLOURS[1], "D", 0.15),
        ):
            for i, sides in enumerate(layers.values()):
                values = sorted(sides[shift > 0])
                q = [values[round(p * (len(values) - 1))] for p in (0, 0.25, 0.5, 0.75, 1)]
                axes.hlines(i + shift, q[0], q[4], color=colour, linewidth=0.8)
                axes.hlines(i + shift, q[1], q[3], color=colour, linewidth=3)
                axes.plot([q[2]], [i + shift], mark, color=colour, markersize=5, label="" if i else when)
        axes.set_yticks(range(len(layers)), [as_label(layer, 28) for layer in layers], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel=label)
        axes.legend(fontsize=9)

    words = "; ".join(
        f"{key}: {median_high(before):.3g} to {median_high(after):.3g}" for key, (before, after) in layers.items()
    )
    size = (5.2, 1.4 + 0.22 * len(layers))
    return draw(
        name, paint, alt=f"{alt}, by layer, medians before training and after: {words}.", caption=caption, size=size
    )


def firing_chart(rates: Mapping[str, tuple[float, float]]) -> Figure:
    """Share of places in which each layer's branch fires, before training and after."""
    return _layer_chart(
        "firing",
        {name: ([100 * before], [100 * after]) for name, (before, after) in rates.items()},
        label="places in which the branch fires, %",
        alt="Per cent of places in which the branch fires",
        caption="How often the collision branch fires, on test images: 0 % is a plain convolution, 100 % a linear one.",
    )


def weight_chart(weights: Values) -> Figure:
    """w′√n of each layer's channels, before training and after."""
    return _layer_chart(
        "weights",
        weights,
        label="w′√n",
        alt="Collision weights times the root of the fan-in",
        caption="How w′ moved, in units of 1/√n, n the fan-in: median, quartiles and extremes over channels.",
    )
