"""The page of evidence: the same bytes for the same lines, and answers that follow from the numbers."""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from evidence_page import Question, page
from icnets.comparison import lines
from study_results import Cell, Results
from study_tables import budget_table, cell_table, cost_table, label, p_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "benchmarks" / "evidence" / "write_evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _header(name: str, folds: int | None = None) -> dict:
    return {
        "kind": "study", "name": name, "basic": "basic", "folds": folds, "classes": 10,
        "sizes": {"train": 4000, "val": 2000, "test": 10_000}, "versions": {"torch": "2.15.0"},
        "machine": {"cuda": None},
        "methods": [{"name": "scratch", "wld": None}, {"name": "WLD", "wld": {"schedule": {"kind": "constant"}}}],
    }  # fmt: skip


def _network(name: str, ratio: float) -> dict:
    step = {"ms_per_image": 0.05, "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
    step |= {"rounds": 11, "batch_size": 100, "threads": 1}
    return {
        "kind": "network",
        "name": name,
        "parameters": 5000,
        "macs": 60_000,
        "step": step,
        "step_taught": step | {"ratio": ratio + 0.5},
    }


def _run(cell: Cell, seed: int, error: float, curve: list[float] | None = None, **more: float) -> dict:
    curve = curve or [50.0, error]
    return {
        "kind": "run", "network": cell.network, "method": cell.method, "recipe": cell.recipe, "budget": cell.budget,
        "seed": seed, "test": {"error": error, "loss": 0.1}, "val_error": curve, "seconds": 10.0 * len(curve),
        "epoch_seconds": [10.0 * (i + 1) for i in range(len(curve))], **more,
    }  # fmt: skip


def test_a_question_may_have_studies_of_its_own(tmp_path: Path) -> None:
    """They are put to no other, and what fails there is told once."""
    cells = [Cell("basic"), Cell("IC")]
    general, own = Question("General?", cells), Question("Own?", cells, studies=("family",))
    studies = [Results(_study(name, {Cell("IC"): -5.0})) for name in ("family_8", "other")]
    text = page(studies, [general, own], tmp_path, "images")
    first, second = text[: text.index("## Own?")], text[text.index("## Own?") : text.index("## What did not work")]
    assert ("**other**" in first, "**family_8**" in first) == (True, False)
    assert ("**other**" in second, "**family_8**" in second) == (False, True)
    worse = text[text.index("## What did not work") :]
    assert (worse.count("**other**"), worse.count("**family_8**")) == (1, 1)


def _study(name: str, gains: dict[Cell, float], seeds: int = 5, spread: float = 0.1, folds: int | None = None) -> list:
    """Lines of a made-up study: errors of 10 % less the gain of the cell, with what a seed adds to all and to each."""
    rng = random.Random(name)
    common = [rng.gauss(0, 1) for _ in range(seeds)]
    cells = {Cell("basic"): 0.0, **gains}
    runs = [_run(c, s, 10 - g + common[s] + rng.gauss(0, spread)) for c, g in cells.items() for s in range(seeds)]
    return [_header(name, folds), *(_network(c, 1 + i / 10) for i, c in enumerate({c.network for c in cells})), *runs]


HELPS = {Cell("IC"): 1.0, Cell("no collision term"): 0.9, Cell("SE"): -1.0, Cell("basic, wider"): 0.0}


def test_the_committed_page_is_what_the_committed_lines_give(script: ModuleType, tmp_path: Path) -> None:
    assert script.evidence(script.LINES, tmp_path) == script.PAGE.read_text(encoding="utf-8")
    for picture in tmp_path.glob("*.png"):
        assert (script.IMAGES / picture.name).is_file(), f"make evidence draws {picture.name}, which isn't committed"


def test_the_same_lines_give_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    fast = {Cell("IC", "WLD", budget=b): -2 + 3 * b for b in (0.25, 1.0)}
    slow = {Cell("basic", budget=0.25): -2.0, Cell("IC", budget=0.25): -1.5}
    lines.rewrite(tmp_path / "mnist1d.jsonl", _study("mnist1d", HELPS | fast | slow))
    lines.rewrite(tmp_path / "solar.jsonl", _study("solar", HELPS, folds=5))
    pages = []
    for i in range(2):
        text = script.evidence(tmp_path, tmp_path / f"images{i}")
        pages.append((text, {p.name: p.read_bytes() for p in (tmp_path / f"images{i}").iterdir()}))
    assert pages[0] == pages[1]
    assert set(pages[0][1]) == {"evidence-networks.png", "evidence-budgets.png"}
    text = pages[0][0]
    assert text.index("**mnist1d**") < text.index("**solar**")
    assert "intervals widened for their overlap" in text
    assert "SE, −" in text.partition("## What did not work")[2]


def _answers(study: list, question: Question, tmp_path: Path) -> list[str]:
    text = page([Results(study)], [question], tmp_path, "images")
    return [line for line in text.splitlines() if line.startswith("- **") and "×" not in line]


@pytest.mark.parametrize(("gain", "word"), [(1.0, "better"), (-1.0, "worse"), (0.02, "not distinguishable")])
def test_the_answer_follows_the_numbers(gain: float, word: str, tmp_path: Path) -> None:
    question = Question("?", [Cell("basic"), Cell("IC")])
    answer = _answers(_study("made up", {Cell("IC"): gain}), question, tmp_path)[0]
    assert answer.startswith(f"- **made up**: IC − basic: {'+' if gain > 0.1 else '−' if gain < 0 else ''}")
    assert answer.endswith(f"pp, {word}.")


def test_one_seed_cannot_tell(tmp_path: Path) -> None:
    question = Question("?", [Cell("basic"), Cell("IC")])
    assert "one run alone can't tell" in _answers(_study("x", {Cell("IC"): 3.0}, seeds=1), question, tmp_path)[0]


def test_a_difference_that_one_test_would_call_clear_may_not_survive_many() -> None:
    study = Results(_study("many", {Cell("IC"): 0.35} | {Cell(f"net {i}"): 0.0 for i in range(30)}))
    single = study.family([(Cell("IC"), Cell("basic"))])[0]
    many = study.family([(cell, Cell("basic")) for cell in study.runs])[1]
    assert single is not None
    assert many is not None
    assert single.difference == many.difference
    assert single.clear
    assert not many.clear


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    study = Results(
        [_header("x"), *(_run(Cell("basic"), s, e) for s, e in ((0, 10.0), (1, 20.0), (2, 30.0))),
         *(_run(Cell("IC"), s, e) for s, e in ((2, 29.0), (1, 18.0), (7, 99.0)))]
    )  # fmt: skip
    found = study.compare(Cell("IC"), Cell("basic"))
    assert found is not None
    assert found.difference.mean == pytest.approx(1.5)
    assert found.difference.n == 2
    assert study.compare(Cell("IC"), Cell("IC")) is None
    assert study.compare(Cell("IC"), Cell("nothing")) is None


def test_the_smallest_budget_that_is_enough(tmp_path: Path) -> None:
    curve = [40.0, 30.0, 20.0, 10.0]
    own = [_run(Cell("basic"), s, 10.0, curve) for s in range(2)]
    own += [_run(Cell("IC", "WLD", budget=0.25), s, 9.0, [9.0]) for s in range(2)]
    own += [_run(Cell("IC", "WLD"), s, 8.0, [30.0, 10.0, 9.0, 8.0]) for s in range(2)]
    own += [_run(Cell("basic", "WLD", budget=0.25), s, 12.0, [12.0]) for s in range(2)]
    own += [_run(Cell("IC", "start gain"), s, 8.0, curve, start_error=10.0) for s in range(2)]
    kinds = [("IC", "WLD"), ("basic", "WLD"), ("IC", "start gain"), ("basic", "scratch")]
    cells = [Cell(n, m, budget=b) for n, m in kinds for b in (0.25, 1.0)]
    question = Question("Faster?", cells, budgets=True)
    costs = [_network("basic", 1.0), _network("IC", 1.2)]
    text = page([Results([_header("x"), *costs, *own])], [question], tmp_path, "images")
    assert "IC, WLD: with 25 % of the epochs and ×0.42 the time" in text  # of steps with a teacher, at 1.7
    assert "basic, WLD: with none of the budgets" in text
    assert "IC, WLD in epoch 2 of 4 (×0.85 the time)" in text
    assert "IC, start gain in epoch 0 of 4 (×0.00 the time)" in text
    whole = [_header("x"), *costs, *(line for line in own if line["budget"] == 1.0)]
    text = page([Results(whole)], [question], tmp_path, "images")  # no budgets to compare: no table, but the notes
    assert "with none of the budgets" not in text
    assert "- **x**: Within a run of the whole budget" in text
    assert "IC, WLD in epoch 2 of 4 (×0.85 the time)" in text
    table = budget_table(Results([_header("x"), *costs, *own]), cells, Cell("basic"), "t")
    assert [row[0] for row in table.rows] == ["IC, WLD", "basic, WLD", "IC, start gain", "basic"]
    assert table.rows[1][1] == "88.00 [88.00, 88.00]"
    assert table.rows[0][1].startswith("**91.00")


def test_budgets_are_compared_over_the_seeds_that_all_have() -> None:
    own = [_run(Cell("basic"), s, e) for s, e in ((0, 10.0), (1, 10.0), (2, 40.0))]
    own += [_run(Cell("IC", "WLD", budget=0.25), s, 11.0) for s in range(2)]
    table = budget_table(
        Results([_header("x"), *own]), [Cell("basic"), Cell("IC", "WLD", budget=0.25)], Cell("basic"), "t"
    )
    assert table.rows == [["basic", "", "**90.00 [90.00, 90.00]**"], ["IC, WLD", "89.00 [89.00, 89.00]", ""]]
    assert "Over 2 seeds" in table.notes[0]


def test_rows_that_are_not_subjects_are_not_compared_nor_counted() -> None:
    study = Results(_study("few", {Cell("IC"): 0.35} | {Cell(f"net {i}"): 0.0 for i in range(30)}))
    table = cell_table(study, list(study.runs), [None], "t", [Cell("IC")])
    assert [bool(row[2]) for row in table.rows] == [row[0] == "IC" for row in table.rows]
    assert table.rows[1][2].startswith("**")


def test_names_are_as_long_as_they_must_be() -> None:
    cells = [Cell("IC"), Cell("IC", "WLD"), Cell("IC", "WLD", budget=0.25)]
    assert [label(c, cells) for c in cells] == ["IC, 100 %", "IC, WLD, 100 %", "IC, WLD, 25 %"]
    assert [label(c, cells[:2]) for c in cells[:2]] == ["IC", "IC, WLD"]
    assert [label(c, cells[1:2]) for c in cells[1:2]] == ["IC, WLD"]  # never to be taken for IC from scratch
    assert [p_text(p) for p in (None, 0.0001, 0.0123, 0.5)] == ["", "< 0.001", "0.012", "0.50"]


def test_auc_has_columns_where_there_is_one() -> None:
    study = _study("solar", {Cell("IC"): 1.0})
    for line in study:
        if line["kind"] == "run":
            line["test"]["auc"] = 0.8 + (0.05 if line["network"] == "IC" else 0.0) + 0.001 * line["seed"]
    table = cell_table(Results(study), [Cell("basic"), Cell("IC")], [None], "t")
    at = list(table.columns).index("AUC, %")
    assert table.rows[1][at].startswith("85.20 [")
    assert table.rows[1][at + 1].startswith("**+5.00 [")


def test_lines_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"kind": "run"}) + "\n")
    with pytest.raises(ValueError, match="have 0 headers"):
        Results(lines.read(tmp_path / "x.jsonl"))


def test_lines_without_a_measured_step_have_the_time_of_a_forward_pass() -> None:
    study = _study("new", {Cell("IC"): 1.0})
    for line in study:
        if line["kind"] == "network":
            line["latency"] = {**line.pop("step"), "ratio": 3.0}
            del line["step_taught"]
    results = Results(study)
    assert results.time(Cell("IC")) == pytest.approx(3.0)
    assert "of a step or of a forward pass" in cell_table(results, list(results.runs), [None], "t").notes[0]
    table = cost_table(results, "t")
    assert list(table.columns)[3] == "forward pass"
    assert table.rows[1][3].startswith("×3.00")
    assert table.notes[0].startswith("A forward pass of 100 examples")
