"""The pictures of a comparison: error while training, and the decision regions of single neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icnets.compare.boundary import Fit
from icnets.compare.statistics import t_interval
from icnets.support.files import atomic_write

__all__ = ["Curve", "new_figure", "plot_boundaries", "plot_curves", "save_figure"]

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


def _band(errors: Sequence[Sequence[float]], confidence: float) -> tuple[list[float], list[float], list[float]]:
    intervals = [t_interval(values, confidence) for values in zip(*errors, strict=True)]
    middle = [i.mean for i in intervals]
    low = [i.mean if i.low is None else max(i.low, 0.0) for i in intervals]
    high = [i.mean if i.high is None else min(i.high, 100.0) for i in intervals]
    return middle, low, high


def _looks(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    groups = list(dict.fromkeys(curve.group for curve in curves))
    colours = [COLOURS[groups.index(curve.group) % len(COLOURS)] for curve in curves]
    return [{"color": c, "linestyle": DASHES[v.dash % len(DASHES)]} for c, v in zip(colours, curves, strict=True)]


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str, confidence: float = 0.95) -> None:
    """Validation error by epoch and by second, as the mean over seeds with its t interval; PNG, written atomically.

    Args:
        curves: the first is the reference, whose final mean is drawn as a line.
        path: of the picture, in a folder that exists.
        title: one line above both halves.

    Raises:
        ValueError: for no curves, or seeds of one curve with different numbers of epochs.
    """
    if not curves:
        raise ValueError("curves is empty; a picture needs at least one method")
    from matplotlib import rc_context
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with rc_context(STYLE):
        figure, axes = new_figure(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
        final = _band(curves[0].errors, confidence)[0][-1]
        floor = final
        for curve, look in zip(curves, _looks(curves), strict=True):
            middle, low, high = _band(curve.errors, confidence)
            floor = min([floor, *middle])
            for ax, x in zip(axes, (curve.epochs, curve.seconds), strict=True):
                ax.plot(x, middle, linewidth=2, label=curve.name, **look)
                ax.fill_between(x, low, high, color=look["color"], alpha=0.08, linewidth=0)
        for ax, label in zip(axes, ("epochs", "seconds of training (median over seeds)"), strict=True):
            ax.axhline(final, color="#000000", linewidth=0.8, linestyle=":")
            ax.set(xlabel=label, yscale="log")
            ax.set_ylim(max(0.6 * floor, 0.05), 100)
            ax.set_xlim(left=0)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_yticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= max(0.6 * floor, 0.05)])
        axes[0].set_ylabel("validation error, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(curves)))
        band = f"mean and {100 * confidence:g} % interval over seeds; " if len(curves[0].errors) > 1 else ""
        figure.suptitle(
            f"{title}\n{band}a warm start counts on from the end of the basic network's training", fontsize=12
        )
        save_figure(figure, path)


def plot_boundaries(results: Mapping[str, Mapping[str, tuple[Tensor, Tensor, Fit]]], path: Path) -> None:
    """Decision regions of a plain and an IC neuron, one row per task; PNG, written atomically.

    Args:
        results: what :func:`icnets.compare.boundary.boundary_experiment` returns.
        path: of the picture, in a folder that exists.
    """
    from matplotlib import rc_context
    from matplotlib.colors import ListedColormap

    names = {"plain": "one plain neuron", "ic": "one IC neuron"}
    regions, dots = ListedColormap(["#CFE5F3", "#FBE3C0"]), ("#0072B2", "#D55E00")
    with rc_context({**STYLE, "axes.grid": False, "axes.titlesize": 12}):
        rows = len(results)
        figure, axes = new_figure(rows, 2, figsize=(8, 3.9 * rows), layout="constrained", squeeze=False)
        for row, (task, fits) in zip(axes, results.items(), strict=True):
            for ax, (kind, (points, target, fit)) in zip(row, fits.items(), strict=True):
                low, high = points.min(0).values - 0.5, points.max(0).values + 0.5
                x, y = (torch.linspace(float(a), float(b), 300) for a, b in zip(low, high, strict=True))
                with torch.no_grad():
                    height = fit.sign * fit.neuron(torch.cartesian_prod(x, y)).reshape(300, 300).T
                ax.pcolormesh(x.numpy(), y.numpy(), (height > 0).int().numpy(), cmap=regions, rasterized=True)
                ax.contour(x.numpy(), y.numpy(), height.numpy(), levels=[0], colors="#444444", linewidths=1.2)
                size = 140 if len(points) < 10 else 22
                for label, marker in ((0, "o"), (1, "^")):
                    own = points[target == label]
                    ax.scatter(*own.T.numpy(), s=size, c=dots[label], marker=marker, edgecolors="white", linewidths=0.8)
                ax.set_title(f"{task}, {names[kind]}: {100 * fit.accuracy:.3g} % right")
                ax.set(aspect="equal", xticks=[], yticks=[])
        save_figure(figure, path)
