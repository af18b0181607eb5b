"""From the lines of studies to a page: each question with its tables, its figure, and an answer made by rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import evidence_figures as figures
from icnets.support.tables import Table
from study_results import Cell, Comparison, Results
from study_tables import budget_table, cell_table, cost_table, label

__all__ = ["Question", "failures", "page", "verdict"]

_FEW = 4  # comparisons with one reference that are all told
Figure = Callable[..., None]


@dataclass(frozen=True)
class Question:
    """One question to the studies.

    Args:
        title: the question.
        cells: rows of its table; those that a study lacks are left out.
        against: references of the table; None is the basic network of the same recipe and budget.
        subjects: those of ``cells`` that are compared, and that the answer speaks of; None: all.
        budgets: whether budgets are compared: a table by budget, and the smallest that is enough, as the answer.
        costs: whether the networks' costs are shown as well.
        figure: name of the picture's file, without .png; None: none.
        note: sentences of explanation under the title.
        remarks: sentences under the answer.
        studies: names, without the number behind them, of those that are asked, by no other question; (): all others.
    """

    title: str
    cells: Sequence[Cell]
    against: Sequence[Cell | None] = (None,)
    subjects: Sequence[Cell] = ()
    budgets: bool = False
    costs: bool = False
    figure: str | None = None
    note: str = ""
    remarks: Sequence[str] = field(default_factory=tuple)
    studies: tuple[str, ...] = ()

    def asked(self, studies: Sequence[Results], questions: Sequence[Question]) -> list[Results]:
        """Those of ``studies`` that this one of ``questions`` is put to."""
        if self.studies:
            return [study for study in studies if _named(study, self.studies)]
        claimed = tuple(name for question in questions for name in question.studies)
        return [study for study in studies if not _named(study, claimed)]

    def present(self, study: Results) -> list[Cell]:
        """The cells that the study has."""
        return [cell for cell in self.cells if cell in study.runs]

    def references(self, study: Results) -> list[Cell | None]:
        """The references that the study has."""
        return [c for c in self.against if c is None or c in study.runs]


def _named(study: Results, names: Sequence[str]) -> bool:
    return any(re.fullmatch(rf"{name}(_\d+)?", study.name) for name in names)


def verdict(study: Results, cell: Cell, reference: Cell, found: Comparison, among: Sequence[Cell]) -> str:
    """One comparison in words, with its numbers; cells are named so that they differ ``among`` these."""
    names = f"{label(cell, among)} − {label(reference, among)}"
    numbers = f"{found.difference.format(signed=True)} pp"
    if found.p_holm is None:
        return f"{names}: {numbers}, one run alone can't tell"
    word = "not distinguishable" if not found.clear else "better" if found.difference.mean > 0 else "worse"
    return f"{names}: {numbers}, {word}"


def _answer(question: Question, study: Results) -> str:
    """Every comparison; of more than a few with one reference, those that are clear."""
    cells = question.present(study)
    subjects = [cell for cell in question.subjects or cells if cell in cells]
    sentences = []
    for reference in question.references(study):
        pairs = [(cell, study.basic(cell) if reference is None else reference) for cell in subjects]
        found = [(*pair, c) for pair, c in zip(pairs, study.family(pairs), strict=True) if c is not None]
        told = [row for row in found if row[2].clear] if len(found) > _FEW else found
        sentences += [verdict(study, cell, own, c, [*cells, own]) for cell, own, c in told]
        if (rest := len(found) - len(told)) > 0:
            name = label(found[0][1], [*cells, found[0][1]])
            sentences.append(f"{'the other ' if told else ''}{rest} − {name}: not distinguishable")
    return "; ".join(sentences)


def _enough(question: Question, study: Results) -> str:
    """The smallest budget with which the mean is at least the basic network's with the whole, for each kind of row."""
    cells = question.present(study)
    target = _whole(study, cells)
    seeds = study.common([*cells, target])
    goal = study.interval(target, seeds=seeds).mean
    kinds = list(dict.fromkeys(c.kind for c in cells))
    sentences = []
    for kind in kinds:
        own = sorted((c for c in cells if c.kind == kind), key=lambda c: c.budget)
        enough = next((c for c in own if study.interval(c, seeds=seeds).mean >= goal), None)
        name = label(kind, kinds)
        if enough is None:
            sentences.append(f"{name}: with none of the budgets")
            continue
        sentences.append(f"{name}: with {100 * enough.budget:g} % of the epochs and ×{study.time(enough):.2f} the time")
    return f"the basic network's {goal:.2f} % by its whole budget are reached by {'; '.join(sentences)}"


def _budget_notes(question: Question, study: Results) -> list[str]:
    """When validation within a run first is as good as the basic network's at its end."""
    notes = []
    for cell in question.present(study):
        if cell.budget != 1.0 or cell == study.basic(cell) or (found := study.reached(cell, study.basic(cell))) is None:
            continue
        epochs, seeds, of = found
        total = len(next(iter(study.runs[study.basic(cell)].values()))["val_error"])
        some = "" if seeds == of else f" in {seeds} of {of} seeds"
        name = label(cell, [c for c in question.cells if c.budget == 1.0])
        notes.append(f"{name} in epoch {epochs:g} of {total} (×{study.time(cell, epochs):.2f} the time){some}")
    return notes


def _within(question: Question, study: Results) -> list[str]:
    """A sentence of the notes, for a question about budgets; none if there are no notes."""
    notes = _budget_notes(question, study) if question.budgets else []
    start = "Within a run of the whole budget, the basic network's last validation accuracy is first reached by "
    return [f"{start}{', '.join(notes)} (medians over seeds)."] if notes else []


def _has_answer(question: Question, study: Results) -> bool:
    cells = question.present(study)
    if not question.budgets:
        return bool(_answer(question, study))
    return len({c.budget for c in cells}) > 1 and bool(study.common([*cells, _whole(study, cells)]))


def _whole(study: Results, cells: Sequence[Cell]) -> Cell:
    """The basic network with its whole budget, which budgets are measured by."""
    return study.basic(Cell("", recipe=cells[0].recipe))


def _section(question: Question, studies: Sequence[Results], images: Path, link: str) -> list[str]:
    shown = [study for study in studies if _has_answer(question, study)]
    lines = [f"## {question.title}", ""]
    if question.note:
        lines += [question.note, ""]
    others = [f"- **{s.name}**: {text}" for s in studies if s not in shown for text in _within(question, s)]
    if not shown and not others:
        return [*lines, "*Not measured yet.*", ""]
    for study in shown:
        lines += [_table(question, study).markdown()]
        if question.costs:
            lines += [cost_table(study, f"{study.name}: what the networks cost").markdown()]
    if question.figure is not None and _draw(question, shown, images):
        lines += [f"![{question.title}]({link}/{question.figure}.png)", ""]
    for study in shown:
        text = _enough(question, study) if question.budgets else _answer(question, study)
        lines.append(f"- **{study.name}**: {text}.")
        lines += [f"  {sentence}" for sentence in _within(question, study)]
    return [*lines, *others, "", *(f"{remark}\n" for remark in question.remarks)]


def _table(question: Question, study: Results) -> Table:
    cells = question.present(study)
    if question.budgets:
        return budget_table(study, cells, _whole(study, cells), f"{study.name}: by budget")
    title = f"{study.name}: {_setting(cells)}"
    return cell_table(study, cells, question.references(study), title, question.subjects or None)


def _setting(cells: Sequence[Cell]) -> str:
    recipes, budgets = (sorted({getattr(c, name) for c in cells}) for name in ("recipe", "budget"))
    return f"{', '.join(recipes)} recipe, {', '.join(f'{100 * b:g} %' for b in budgets)} of the epochs"


def _draw(question: Question, shown: Sequence[Results], images: Path) -> bool:
    images.mkdir(parents=True, exist_ok=True)
    path = images / f"{question.figure}.png"
    try:
        if question.budgets:
            kinds = list(dict.fromkeys(c.kind for c in question.cells))
            figures.plot_budgets(shown, kinds, path, title=question.title)
        else:
            figures.plot_differences(shown, question.cells, path, title=question.title)
    except ValueError:  # a study that has only begun has nothing to draw yet
        return False
    return True


def failures(studies: Sequence[Results], questions: Sequence[Question]) -> list[str]:
    """A line for every row of a table that is worse than the basic network of its recipe and budget, clear of 0."""
    found: dict[str, None] = {}
    for study in studies:
        for question in questions:
            cells = question.present(study)
            if study not in question.asked(studies, questions) or None not in question.against or question.budgets:
                continue
            for cell, c in zip(cells, study.family([(cell, study.basic(cell)) for cell in cells]), strict=True):
                if c is not None and c.clear and c.difference.mean < 0:
                    setting = f"{cell.recipe}, {100 * cell.budget:g} % of the epochs"
                    found[
                        f"- **{study.name}** ({setting}): {label(cell, [cell])}, {c.difference.format(signed=True)} pp"
                    ] = None
    return list(found)


def page(studies: Sequence[Results], questions: Sequence[Question], images: Path, link: str) -> str:
    """The questions with their answers, as Markdown; writes the figures.

    Args:
        studies: in the order in which they are to be shown.
        questions: likewise.
        images: folder for the figures; made if missing.
        link: that folder as the page sees it.
    """
    lines = [line for q in questions for line in _section(q, q.asked(studies, questions), images, link)]
    worse = failures(studies, questions)
    lines += [
        "## What did not work",
        "",
        "Rows that are worse than the basic network, clear of 0 (p < 0.05 after Holm):",
        "",
    ]
    lines += [*(worse or ["None." if studies else "*Not measured yet.*"]), ""]
    return "\n".join(lines)
