"""The picture of a comparison: error while training."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icnets.compare.statistics import t_interval
from icnets.support.files import atomic_write

# Okabe and Ito's colours, which the colour-blind can tell apart. A colour is a unit with its way of training; a dash
# tells those apart that share it.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Curve:
    """One method's validation error in per cent, one list per seed.

    ``seconds`` are counted like ``epochs``: from the first step of the network that the method starts from. Curves of
    one ``group`` share a colour; ``dash`` is the number of a line style.
    """

    name: str
    group: str
    epochs: Sequence[int]
    errors: Sequence[Sequence[float]]
    seconds: Sequence[float]
    dash: int = 0


def new_figure(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """pyplot's figure and axes, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(*args, **kwargs)


def save_figure(figure: Any, path: Path) -> None:
    """Writes the figure as PNG, at once or not at all, and closes it."""
    from matplotlib import pyplot as plt

    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    finally:
        plt.close(figure)


def draw_curves(
    axes: Any, curves: Sequence[Curve], x: str, *, confidence: float = 0.95, band: int = 2, ink: str = COLOURS[0]
) -> list[float]:
    """Draws the mean over seeds of each curve, and its t interval where there are at least ``band`` seeds.

    Args:
        axes: matplotlib's.
        curves: colours go by group, line styles by dash.
        x: "epochs" or "seconds".
        confidence: of the intervals.
        band: the least number of seeds whose interval is drawn.
        ink: the colour of the first group.

    Returns:
        All means.
    """
    groups = list(dict.fromkeys(curve.group for curve in curves))
    drawn: list[float] = []
    for curve in curves:
        number = groups.index(curve.group)
        colour = COLOURS[number % len(COLOURS)] if number else ink
        intervals = [t_interval(values, confidence) for values in zip(*curve.errors, strict=True)]
        places, means = getattr(curve, x), [i.mean for i in intervals]
        drawn += means
        look: Any = {"color": colour, "linestyle": DASHES[curve.dash % len(DASHES)], "linewidth": 2}
        axes.plot(places, means, label=as_label(curve.name), **look)
        if len(curve.errors) >= band:
            ends = [[max(getattr(i, end), 0.0) for i in intervals] for end in ("low", "high")]
            axes.fill_between(places, *ends, color=colour, alpha=0.08, linewidth=0)
    return drawn


def as_label(name: str, limit: int = 40) -> str:
    """A name as a label: not too long, printable, and no formula to matplotlib."""
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return (name if len(name) <= limit else name[: limit - 1] + "…").replace("$", r"\$")


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str, confidence: float = 0.95) -> None:
    """Validation error by epoch and by second, as the mean over seeds with its t interval; PNG, written atomically.

    Args:
        curves: the first is the reference, whose final mean is drawn as a line.
        path: of the picture, in a folder that exists.
        title: one line above both halves.
        confidence: of the intervals.

    Raises:
        ValueError: for no curves, or seeds of one curve with different numbers of epochs.
    """
    if not curves:
        raise ValueError("curves is empty; a picture needs at least one method")
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = new_figure(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
        final = statistics.fmean(seed[-1] for seed in curves[0].errors)
        for ax, x, label in zip(
            axes, ("epochs", "seconds"), ("epochs", "seconds of training (median over seeds)"), strict=True
        ):
            floor = max(0.6 * min(draw_curves(ax, curves, x, confidence=confidence)), 0.05)
            ax.axhline(final, color="#000000", linewidth=0.8, linestyle=":")
            ax.set(xlabel=label, yscale="log", ylim=(floor, 100), xlim=(0, None))
            ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= floor]
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        axes[0].set_ylabel("validation error, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(curves)))
        band = f"mean and {100 * confidence:g} % interval over seeds; " if len(curves[0].errors) > 1 else ""
        figure.suptitle(
            f"{title}\n{band}a warm start counts on from the end of the basic network's training", fontsize=12
        )
        save_figure(figure, path)
