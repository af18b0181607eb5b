"""The verdict's rule: keep, don't, or what it takes to tell."""

import math
import re
from types import SimpleNamespace

import pytest

from icnets.comparison.comparison_table import too_few
from icnets.comparison.statistics import shown_interval, t_interval
from icnets.comparison.verdict import recommendation


def row(name: str, differences: list[float] | None, ic: int = 10, time: float = 1.0) -> SimpleNamespace:
    gain = None if differences is None else shown_interval(differences)
    cost = SimpleNamespace(
        parameters=SimpleNamespace(total=1000 + ic, ic=ic), latency=SimpleNamespace(ratio=time, ms_per_image=1.0)
    )
    error = t_interval([10 + d for d in differences or [0.0]])
    return SimpleNamespace(name=name, control="basic, trained on", to_control=gain, error=error, cost=cost)


BASIC = row("basic", None, ic=0)


def test_a_gain_clear_of_zero_is_kept_with_its_cost():
    said = recommendation([BASIC, row("IC", [-2.0, -2.2, -1.9], time=1.4)], 2)
    assert said == (
        "Keep IC: −2.03 [−2.41, −1.65] pp of error against basic, trained on, with 3 seeds, "
        "at ×1.40 the time per image."
    )
    assert "at the same time per image and size" in recommendation([BASIC, row("IC", [-2.0, -2.2, -1.9])], 2)


def test_of_two_gains_the_network_with_fewer_errors_is_kept():
    rows = [BASIC, row("IC", [-1.0, -1.1, -0.9]), row("IC + WLD", [-2.0, -2.1, -1.9])]
    assert recommendation(rows, 2).startswith("Keep IC + WLD")


def test_a_loss_or_nothing_at_all_is_no_reason():
    assert recommendation([BASIC, row("IC", [1.0, 1.2, 0.9])], 2).startswith("Don't: IC")
    assert recommendation([BASIC, row("IC", [0.4, -0.2, 0.1])], 2).startswith("Don't: IC")
    assert recommendation([BASIC, row("IC", [-2.0, 2.0, -0.1])], 2).startswith("Don't: IC")  # more than 30 seeds


def test_of_collisions_that_have_not_moved_nothing_is_known():
    said = recommendation([BASIC, row("IC", [0.0, 0.0, 0.0])], 2)
    assert said.startswith("Can't tell: IC errs just as basic, trained on does; train longer")


def test_what_it_would_take_is_what_the_interval_says():
    seen = [-1.0, -0.2, -2.2]
    said = recommendation([BASIC, row("IC", seen)], 4)
    assert said.startswith("Can't tell: IC against basic, trained on is −1.13")
    more, minutes = map(int, re.search(r"about (\d+) more seeds, (\d+) minutes, would show it", said).groups())
    assert minutes == 4 * more
    # With as many seeds of the same mean and deviation the interval is clear of 0, and with one fewer it isn't.
    from scipy.stats import t

    mean, deviation = -1.133333, 1.006645
    half = {n: t.ppf(0.975, n - 1) * deviation / math.sqrt(n) for n in (3 + more, 2 + more)}
    assert half[3 + more] < -mean <= half[2 + more]


@pytest.mark.parametrize(("differences", "more"), [([-1.0], "2 more seeds"), ([-1.0, -3.0], "1 more seed,")])
def test_below_three_seeds_there_is_no_verdict(differences, more):
    said = recommendation([BASIC, row("IC", differences)], 2)
    assert said.startswith("Can't tell: an interval takes at least 3 seeds")
    assert more in said
    assert recommendation([BASIC], 2).startswith("Can't tell: no IC network")


def test_two_values_show_their_range_and_no_interval():
    found = shown_interval([4.0, 5.0])
    assert (found.low, found.high, found.excludes_zero) == (None, None, False)
    assert found.format() == "4.50 (4.00 and 5.00)"


def test_few_test_images_are_told():
    assert too_few(101) is None
    assert "2.0 pp" in too_few(50)
