"""The figures of a report that are made from numbers alone: SVG inside the page, in the ink of its text."""

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from icnets.comparison.comparison_table import Row
from icnets.comparison.planned_runs import Entry
from icnets.comparison.runs import Run
from icnets.comparison.statistics import t_interval
from icnets.support.files import atomic_write

INK = "#010203"  # stands for the page's text colour until the SVG is written
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = (INK, "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP*X<>hd"
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
_STYLE: Any = {
    **dict.fromkeys(_INKED, INK),
    **dict.fromkeys(("savefig.facecolor", "figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.grid": True,
    "grid.alpha": 0.15,
    "font.size": 11,
    "font.sans-serif": ["sans-serif"],
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
}


@dataclass(frozen=True)
class Figure:
    """A picture for the page: markup that may be put in as it is, words for who doesn't see it, and those below it."""

    markup: str
    alt: str
    caption: str


def draw(name: str, paint: Callable[[Any], None], *, alt: str, caption: str) -> Figure:
    """A figure of one axes that ``paint`` fills; narrow, so that a phone shows it legibly.

    Args:
        name: a word, another one for each figure of a page.
        paint: gets matplotlib's axes; draws in :data:`INK` what is to have the page's text colour.
        alt: what the figure shows, in words; plain text.
        caption: below it; plain text.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # "sans-serif" is the browser's to find
    buffer = io.StringIO()
    with _drawn(paint, (5.2, 4.6), 1, {"svg.hashsalt": name}) as figure:
        if figure.axes[0].get_legend_handles_labels()[0]:  # below, where it hides nothing
            figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(_inline(buffer.getvalue(), name), alt, caption)


def save_chart(path: Path, paint: Callable[[Any], None], *, size: tuple[float, float], columns: int = 1) -> None:
    """Writes a PNG of what ``paint`` draws, at once or not at all, on white so that it is legible anywhere.

    Args:
        path: of the picture, in a folder that exists.
        paint: gets matplotlib's axes; with several ``columns``, all of them.
        size: in inches.
        columns: axes beside each other.
    """
    own = {"font.sans-serif": ["DejaVu Sans"], "savefig.facecolor": "white"}
    with _drawn(paint, size, columns, own) as figure, atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=130, metadata={"Software": None})


@contextmanager
def _drawn(paint: Callable[[Any], None], size: tuple[float, float], columns: int, own: Any) -> Iterator[Any]:
    """matplotlib's figure of what ``paint`` draws, to be saved in the block, which has its style and ``own``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context({**_STYLE, **own}):
        figure = Canvas(figsize=size, layout="constrained")
        paint(figure.subplots(1, columns))
        yield figure


def _inline(svg: str, name: str) -> str:
    """The <svg> element alone, its ids its own on the page, its size the page's to decide."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    head, end, rest = svg.partition(">")
    svg = re.sub(r' (width|height)="[^"]*"', "", head) + end + rest
    return svg.replace(INK, "currentColor").replace(COLOURS[1].lower(), "var(--blue)")


def as_label(name: str, limit: int = 40) -> str:
    """A name as a label: not too long, printable, and no formula to matplotlib."""
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return (name if len(name) <= limit else name[: limit - 1] + "…").replace("$", r"\$")


@dataclass(frozen=True)
class Curve:
    """One method's validation error in per cent after each epoch, one list per seed.

    ``seconds`` are counted like ``epochs``: from the first step of the network that the method starts from. ``warm``:
    whether it starts from another.
    """

    name: str
    epochs: Sequence[int]
    values: Sequence[Sequence[float]]
    seconds: Sequence[float]
    warm: bool


def curves(entries: Sequence[Entry], runs: Mapping[str, Sequence[Run]]) -> list[Curve]:
    """Validation error after each epoch.

    A warm start counts on from the end of the basic network's training.
    """
    basic = runs[entries[0].name]
    end, end_seconds = len(basic[0].history), median(run.history[-1].seconds for run in basic)
    result: list[Curve] = []
    for entry in (entry for entry in entries if entry.plotted):
        own, warm = runs[entry.name], entry.start != "scratch"
        epochs = [e.epoch + end * warm for e in own[0].history]
        times = zip(*([epoch.seconds for epoch in run.history] for run in own), strict=True)
        seconds = [median(time) + end_seconds * warm for time in times]
        values = [[e.val_error for e in run.history] for run in own]
        starts = [run.start_error for run in own if run.start_error is not None]
        if warm and len(starts) == len(own):
            epochs, seconds = [end, *epochs], [end_seconds, *seconds]
            values = [[first, *rest] for first, rest in zip(starts, values, strict=True)]
        result.append(Curve(entry.name, epochs, values, seconds, warm))
    return result


def curve_charts(curves: Sequence[Curve]) -> list[Figure]:
    """Validation error by epoch and by second.

    Drawn is the mean over seeds, with its 95 % interval where there are three or more: that of two would hide the rest.
    """
    shown = ["", ": mean over seeds", ": mean over seeds, and its 95 % interval"][min(len(curves[0].values) - 1, 2)]
    words = "; ".join(f"{c.name} ends at {fmean(seed[-1] for seed in c.values):.2f}" for c in curves)
    return [
        draw(
            f"validation-error-{x}",
            partial(_paint_curves, curves=curves, x=x, label=label),
            alt=f"Validation error, %, by {label}. {words}.",
            caption=f"Validation error by {label}{shown}.",
        )
        for x, label in (("epochs", "epoch"), ("seconds", "seconds of training"))
    ]


def _paint_curves(axes: Any, curves: Sequence[Curve], x: str, label: str) -> None:
    highest = 0.0
    for number, curve in enumerate(curves):
        intervals = [t_interval(values) for values in zip(*curve.values, strict=True)]
        places, means = getattr(curve, x), [i.mean for i in intervals]
        highest = max(highest, *means)
        row, column = divmod(number, len(COLOURS))
        dash = DASHES[(2 * row + curve.warm) % len(DASHES)]
        look = {"color": COLOURS[column], "linestyle": dash, "linewidth": 2, "marker": "o" if len(places) == 1 else ""}
        axes.plot(places, means, label=as_label(curve.name), **look)
        if len(curve.values) > 2:
            ends = [[min(max(getattr(i, end), 0.0), 100.0) for i in intervals] for end in ("low", "high")]
            axes.fill_between(places, *ends, color=COLOURS[column], alpha=0.08, linewidth=0)
    # The lines fill the picture, not the bands, which are wide where seeds are few.
    axes.set(xlabel=label, ylabel="validation error, %", ylim=(0, min(1.05 * highest, 100) or 1))
    axes.xaxis.get_major_locator().set_params(integer=x == "epochs")


Losses = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


def paint_losses(axes: Any, losses: Losses) -> None:
    """Draws, for each run, its points (epoch, nats) by "train/loss" (solid) and "val/loss" (dashed)."""
    for number, (name, of_run) in enumerate(losses.items()):
        for metric, dash in zip(("train/loss", "val/loss"), DASHES[:2], strict=True):
            if points := of_run.get(metric):
                look = {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 2}
                axes.plot(*zip(*points, strict=True), label=as_label(f"{name} {metric}".strip()), **look)
    axes.set(xlabel="epoch", ylabel="loss, nats", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def loss_chart(losses: Losses) -> Figure:
    """Losses by epoch: see :func:`paint_losses`."""
    ends = "; ".join(f"{name}, {m}: {p[-1][1]:.3g}" for name, run in losses.items() for m, p in run.items() if p)
    caption = "Losses by epoch. With distillation, that of training has another term."
    paint = partial(paint_losses, losses=losses)
    return draw("loss", paint, alt=f"Losses by epoch. At the end: {ends}.", caption=caption)


def cost_chart(rows: Sequence[Row]) -> Figure:
    """Test error against the time of an image, every method a mark with its interval."""
    label, at = "ms per image, forward", [row.cost.latency.ms_per_image for row in rows]

    def paint(axes: Any) -> None:
        span = max(at) - min(at) or at[0]
        for i, row in enumerate(rows):
            e, dodge = row.error, 0.008 * span * (i - len(rows) // 2)  # networks of the same cost stay apart
            bars = None if e.low is None or e.high is None else [[e.mean - e.low], [e.high - e.mean]]
            look = {"color": COLOURS[i % len(COLOURS)], "fmt": MARKERS[i % len(MARKERS)], "markersize": 8}
            axes.errorbar([at[i] + dodge], [e.mean], yerr=bars, label=as_label(row.name), **look)
        axes.set(xlabel=label, ylabel="test error, %")
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100))

    points = "; ".join(f"{row.name}: {row.error.format()} % at {x:.3g}" for row, x in zip(rows, at, strict=True))
    caption = f"Test error against {label}: lower and further left is better. Bars: intervals over seeds."
    return draw("cost-time", paint, alt=f"Test error in per cent against {label}. {points}.", caption=caption)


def paint_confusion(axes: Any, counts: Sequence[Sequence[int]], names: Sequence[str], most_ticks: int = 30) -> None:
    """Rows: the images' classes; columns: the network's answers; shading by share of the row, off the diagonal."""
    table, size, labels = np.array(counts), len(counts), [as_label(name, 14) for name in names]
    shares = table / table.sum(1, keepdims=True).clip(1)
    # Nothing is drawn where there is nothing, so that the page's own ground shows.
    wrong = np.where((table == 0) | np.eye(size, dtype=bool), np.nan, shares)
    most = np.nanmax(wrong, initial=0.05)
    axes.imshow(wrong, cmap="Oranges", vmin=-0.2 * most, vmax=most)
    for i, j in np.argwhere(table).tolist() if size <= 12 else []:
        # Off the diagonal the ground is orange in dark mode too.
        colour = INK if i == j else "#ffffff" if shares[i, j] > 0.6 * most else "#000000"
        axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=9, color=colour)
    step = -(-size // most_ticks)
    axes.set_xticks(range(0, size, step), labels[::step], rotation=90, fontsize=8)
    axes.set_yticks(range(0, size, step), labels[::step], fontsize=8)
    axes.set(xlabel="answer", ylabel="class")
    axes.grid(visible=False)


def confusion_chart(counts: Sequence[Sequence[int]], names: Sequence[str], title: str, number: int = 0) -> Figure:
    """The confusion matrix of ``title``, the ``number``-th on its page: see :func:`paint_confusion`."""
    pairs = sorted(((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j), reverse=True)
    worst = "; ".join(f"{names[i]} taken for {names[j]}: {n}" for n, i, j in pairs[:5])
    total, right = sum(map(sum, counts)), sum(row[i] for i, row in enumerate(counts))
    return draw(
        f"confusion-{number}",
        lambda axes: paint_confusion(axes, counts, names),
        alt=f"Confusion matrix of {title}: {right} of {total} right. {worst or 'No confusions'}.",
        caption=f"{title}: {right} of {total} test images right. Shading: share of a class's images with that answer.",
    )
