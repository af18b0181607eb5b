"""Tables of a study, made from its lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from icnets.support.tables import Table, human
from study_results import Cell, Comparison, Results

__all__ = ["budget_table", "cell_table", "cost_table", "label", "p_text"]


def label(cell: Cell, among: Sequence[Cell]) -> str:
    """The cell's name, as long as it takes to tell it from the others; a method is always in it, from scratch apart."""
    parts = [cell.network]
    if cell.method != "scratch":  # also where all have it: without it the network would pass for one from scratch
        parts.append(cell.method)
    if len({c.recipe for c in among}) > 1:
        parts.append(cell.recipe)
    if len({c.budget for c in among}) > 1:
        parts.append(f"{100 * cell.budget:g} %")
    return ", ".join(parts)


def p_text(p: float | None) -> str:
    """A p value in two digits, "< 0.001" below that."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def difference_text(comparison: Comparison | None) -> str:
    """Mean and interval in percentage points, bold where it is clear of 0 after the correction."""
    if comparison is None:
        return ""
    text = comparison.difference.format(signed=True)
    return f"**{text}**" if comparison.clear else text


def cell_table(
    results: Results,
    cells: Sequence[Cell],
    against: Sequence[Cell | None],
    title: str,
    subjects: Sequence[Cell] | None = None,
) -> Table:
    """Cells as rows: accuracy, differences with their corrected p, time of training, number of seeds.

    Args:
        results: the study.
        cells: rows; those that the study lacks are left out.
        against: a column of differences for each; None is the basic network of the same recipe and budget.
        title: above the table.
        subjects: only these rows are compared, and only their number counts in the correction; None: all.
    """
    cells = [cell for cell in cells if cell in results.runs]
    auc = any("auc" in run["test"] for cell in cells for run in results.runs[cell].values())
    columns, rows = ["", "accuracy, %"], [[label(cell, cells)] for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        row.append(results.interval(cell).format())
    for reference in against:
        own = [results.basic(cell) if reference is None else reference for cell in cells]
        name = results.header["basic"] if reference is None else label(reference, [*cells, reference])
        columns += [f"− {name}, pp", "p"]
        pairs = [(c, o if subjects is None or c in subjects else c) for c, o in zip(cells, own, strict=True)]
        for row, found in zip(rows, results.family(pairs), strict=True):
            row += [difference_text(found), "" if found is None else p_text(found.p_holm)]
    if auc:
        columns += ["AUC, %", f"− {results.header['basic']}, pp"]
        pairs = [(cell, results.basic(cell)) for cell in cells]
        for row, cell, found in zip(rows, cells, results.family(pairs, "auc"), strict=True):
            row += [results.interval(cell, "auc").format(), difference_text(found)]
    columns += ["time", "seeds"]
    for row, cell in zip(rows, cells, strict=True):
        row += [f"×{results.time(cell):.2f}", str(len(results.runs[cell]))]
    return Table(title, columns, rows, _notes(results))


def _notes(results: Results) -> list[str]:
    folds = results.header["folds"]
    how = f"folds of {folds}-fold cross-validation, intervals widened for their overlap" if folds else "seeds"
    step = "a step" if all("step" in line for line in results.networks.values()) else "a step or of a forward pass"
    return [
        f"Brackets: 95 % t interval over {how}; differences paired; p after Holm; bold: p < 0.05. "
        f"Time: epochs times the measured time of {step}, beside the basic network's whole training."
    ]


def cost_table(results: Results, title: str) -> Table:
    """What each network costs: parameters, MACs, and the measured time beside the basic one's.

    The time is of a training step; in lines without one, of a forward pass.
    """
    rows, lines = [], list(results.networks.values())
    what = "step" if all("step" in line for line in lines) else "latency"
    for line in lines:
        step: dict[str, Any] = line[what]
        spread = f"{step['ratio_low']:.2f}–{step['ratio_high']:.2f}"
        cells = [line["name"], human(line["parameters"]), human(line["macs"])]
        taught = f"×{line['step_taught']['ratio']:.2f}" if "step_taught" in line else ""
        ms = f"{step['ms_per_image'] * step['batch_size']:.1f}"
        rows.append([*cells, f"×{step['ratio']:.2f} ({spread})", ms, taught])
    step = lines[0][what]
    names = {"step": ("training step", "A step: forward and backward"), "latency": ("forward pass", "A forward pass")}
    note = (
        f"{names[what][1]} of {step['batch_size']} examples on {step['threads']} thread(s), eager; median "
        f"and quartiles of {step['rounds']} interleaved rounds."
    )
    return Table(title, ["network", "parameters", "MACs", names[what][0], "ms", "step with teacher"], rows, [note])


def budget_table(results: Results, cells: Sequence[Cell], target: Cell, title: str) -> Table:
    """Accuracy by budget, over the seeds that all cells have; cells that differ in nothing else share a row.

    Bold is what is at ``target``'s mean or above.
    """
    cells = [c for c in cells if c in results.runs]
    kinds = list(dict.fromkeys(c.kind for c in cells))
    budgets = sorted({c.budget for c in cells})
    seeds = results.common([*cells, target])
    goal = results.interval(target, seeds=seeds).mean
    rows = []
    for kind in kinds:
        row = [label(kind, kinds)]
        for budget in budgets:
            cell = replace(kind, budget=budget)
            if cell not in results.runs:
                row.append("")
                continue
            found = results.interval(cell, seeds=seeds)
            row.append(f"**{found.format()}**" if found.mean >= goal else found.format())
        rows.append(row)
    bold = f"at least {goal:.2f} %, {target.network}'s mean by its whole budget"
    note = f"Over {len(seeds)} seeds that all have. Bold: {bold}."
    return Table(title, ["", *(f"{100 * budget:g} %" for budget in budgets)], rows, [note])
