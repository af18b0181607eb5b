"""The rule by which the default weight of the distillation was chosen, and that it says so of the measurements."""

from itertools import product

import pytest

import wld_stability
from icnets import DistillationSchedule
from wld_stability import GRID, Cells, cells, chosen, failures, read


def safe() -> Cells:
    """Nothing diverged anywhere, at 90 %."""
    return {
        (name, weight, m, 1.0): (0, 0.9)
        for name, (weights, multiples) in GRID.items()
        for weight, m in product(weights, multiples)
    }


def test_the_largest_weight_that_passes() -> None:
    assert chosen(safe()) == 1.0
    assert chosen(safe() | {("digits, scratch", 1.0, 2, 1.0): (1, 0.9)}) == 0.5


@pytest.mark.parametrize(("top1", "failed"), [(0.871, False), (0.869, True)])
def test_three_points_below_no_distillation_are_unstable(top1: float, failed: bool) -> None:
    found = safe() | {("digits, scratch", 0.5, 4, 1.0): (0, top1)}
    assert failures(found, 0.5) == (["digits, scratch × 4"] if failed else [])
    assert not failures(found, 0.25)


def test_a_recipe_that_is_stable_must_stay_so_up_to_twice_its_rate() -> None:
    name = "digits, scratch"
    high = {(name, w, m, 1.0): (3, 0.1) for w in (0.0, 1.0) for m in (4, 8)}
    assert failures(safe() | high, 1.0) == [f"{name} × 4"]  # at 2 nothing is wrong; at 8 nothing is asked
    assert not failures(
        safe() | high | {(name, w, 4, 1.0): (3, 0.1) for w in (0.25, 0.5)}, 1.0
    )  # too high for anything


def test_where_none_passes_the_fewest_failures_decide_and_then_the_smaller() -> None:
    name = "digits, scratch"
    bad = {(name, w, 4, 1.0): (1, 0.9) for w in (0.25, 0.5, 1.0)}
    assert chosen(safe() | bad) == 0.25
    assert chosen(safe() | bad | {(name, 0.25, 2, 1.0): (1, 0.9)}) == 0.5


def test_the_default_is_what_the_measurements_say() -> None:
    found = cells(read())
    assert {(name, w, m, 1.0) for name, (ws, ms) in GRID.items() for w, m in product(ws, ms)} <= found.keys()
    assert chosen(found) == DistillationSchedule().weight


def test_the_docs_have_the_rows_of_the_file() -> None:
    page = (wld_stability.ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    assert "\n".join(wld_stability.rows_of_the_docs()) in page
    found = cells(read())
    tenth, full, adamw = (
        found[name, 0.25, 1, f][1] for name, f in (("lite0", 0.1), ("lite0", 1), ("lite0, AdamW", 0.1))
    )
    said = f"{tenth:.1%} at a tenth, {full:.1%} at the full rate, and {adamw:.1%} with AdamW".replace("%", " %")
    assert said in page
    tenth, full = (found["lite0", 0.25, 4, f][1] for f in (0.1, 1))
    assert f"{tenth:.1%} at a tenth, {full:.1%} at the\nfull one".replace("%", " %") in page
    digits = {(w, m, f): found["digits, warm", w, m, f][1] for w in (0, 0.25) for m in (1, 8) for f in (0.1, 1)}
    assert all(abs(digits[w, m, 0.1] - digits[w, m, 1]) <= 0.002 for w, m, _ in digits)


def test_lines_have_the_keys_of_the_plan() -> None:
    assert set(wld_stability.plan()) <= read().keys()
