"""Figures of studies, made from their lines alone; PNG, written atomically, the same bytes for the same lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icnets.support.files import atomic_write
from study_results import Cell, Results
from study_tables import label

__all__ = ["plot_budgets", "plot_differences"]

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
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


def plot_differences(studies: Sequence[Results], cells: Sequence[Cell], path: Path, *, title: str) -> None:
    """Difference of each cell to the basic network with its interval, a panel for each study.

    Args:
        studies: those without any of the cells have no panel.
        cells: rows from top to bottom.
        path: of the picture, in a folder that exists.
        title: above the panels.

    Raises:
        ValueError: no study has any of the cells.
    """
    from matplotlib import rc_context

    shown = [study for study in studies if any(study.compare(c, study.basic(c)) for c in cells)]
    if not shown:
        raise ValueError("none of the studies has a difference to show")
    rows = [c for c in cells if any(study.compare(c, study.basic(c)) for study in shown)]
    with rc_context(STYLE):
        size = (4.0 * len(shown) + 3, 0.42 * len(rows) + 1.9)
        figure, axes = new_figure(1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for ax, study in zip(axes[0], shown, strict=True):
            for y, cell in enumerate(rows):
                found = study.compare(cell, study.basic(cell))
                if found is None:
                    continue
                mean, low, high = found.difference.mean, found.difference.low, found.difference.high
                colour = COLOURS[1] if cell.network.startswith("IC") else COLOURS[0]
                if low is not None and high is not None:
                    ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
                ax.plot([mean], [y], "o", color=colour, markersize=6)
            ax.axvline(0, color="#888888", linewidth=1)
            ax.set(title=study.name, xlabel="accuracy − basic, pp")
        axes[0][0].set_yticks(range(len(rows)), [label(cell, rows) for cell in rows])
        axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
        figure.suptitle(title, fontsize=12)
        save_figure(figure, path)


def plot_budgets(studies: Sequence[Results], kinds: Sequence[Cell], path: Path, *, title: str) -> None:
    """Mean accuracy over budget, a panel for each study; the dotted line is the basic network with its whole budget.

    A colour is a method, a dash a network; the means are over the seeds that all have.

    Args:
        studies: those with fewer than two budgets of any kind have no panel.
        kinds: lines; their budget doesn't matter.
        path: of the picture, in a folder that exists.
        title: above the panels.

    Raises:
        ValueError: no study has two budgets.
    """
    from matplotlib import rc_context

    def seeds_of(study: Results) -> list[int]:
        return study.common([study.basic(kinds[0]), *(cell for kind in kinds for cell in _budgets(study, kind))])

    shown = [study for study in studies if any(len(_budgets(study, kind)) > 1 for kind in kinds) and seeds_of(study)]
    if not shown:
        raise ValueError("none of the studies has more than one budget")
    methods, networks = (list(dict.fromkeys(getattr(kind, name) for kind in kinds)) for name in ("method", "network"))
    with rc_context(STYLE):
        size = (5.4 * len(shown) + 1, 5.2)
        figure, axes = new_figure(1, len(shown), figsize=size, squeeze=False, layout="constrained")
        for ax, study in zip(axes[0], shown, strict=True):
            basic = study.basic(kinds[0])
            seeds = seeds_of(study)
            for kind in kinds:
                cells = _budgets(study, kind)
                if len(cells) < 2:
                    continue
                found = [study.interval(cell, seeds=seeds) for cell in cells]
                x = [100 * cell.budget for cell in cells]
                look: dict[str, Any] = {"color": COLOURS[methods.index(kind.method) % len(COLOURS)]}
                look["linestyle"] = DASHES[networks.index(kind.network) % len(DASHES)]
                ax.plot(x, [f.mean for f in found], marker="o", linewidth=2, label=label(kind, kinds), **look)
            ax.axhline(study.interval(basic, seeds=seeds).mean, color="#000000", linewidth=0.8, linestyle=":")
            ax.set(title=study.name, xlabel="epochs, % of the whole budget", ylabel="accuracy, %", xscale="log")
            ticks = sorted({100 * cell.budget for kind in kinds for cell in _budgets(study, kind)})
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            ax.minorticks_off()
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title, fontsize=12)
        save_figure(figure, path)


def _budgets(study: Results, kind: Cell) -> list[Cell]:
    """The cells of a kind, by rising budget."""
    return sorted((cell for cell in study.runs if cell.kind == kind.kind), key=lambda cell: cell.budget)
