import random
import time

import numpy as np
import pytest

from icnets.support.rounds import Ratio, interleaved, paired_ratio


@pytest.mark.parametrize("n", [2, 3, 4, 15, 30])
def test_paired_ratio_is_the_median_of_ratios_with_quartiles(n):
    draw = random.Random(n).uniform
    times, reference = ([draw(1, 5) for _ in range(n)] for _ in range(2))
    low, median, high = np.quantile(np.array(times) / np.array(reference), [0.25, 0.5, 0.75])
    found = paired_ratio(times, reference)
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high), rel=1e-12)


def test_paired_ratio_isnt_moved_by_what_slows_a_whole_round():
    reference = [1.0, 1.0, 7.0, 1.0, 3.0]
    found = paired_ratio([1.2 * t for t in reference], reference)
    assert (found.low, found.median, found.high) == pytest.approx((1.2, 1.2, 1.2))


def test_one_round_has_no_spread():
    assert paired_ratio([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


@pytest.mark.parametrize(("times", "reference"), [([1.0], [1.0, 2.0]), ([], [])])
def test_pairs_need_as_many_of_each(times, reference):
    with pytest.raises(ValueError, match=r"longer than|data point"):
        paired_ratio(times, reference)


def test_every_step_runs_once_in_every_round_in_changing_order():
    calls: list[str] = []
    steps = {name: lambda name=name: (calls.append(name), time.sleep(0.002)) for name in "abc"}
    times = interleaved(steps, rounds=8, min_seconds=0.001)
    assert {name: len(found) for name, found in times.items()} == {"a": 8, "b": 8, "c": 8}
    assert all(0.002 <= t < 1 for found in times.values() for t in found)
    orders = ["".join(calls[i : i + 3]) for i in range(len(calls) - 24, len(calls), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1


def test_short_steps_are_repeated_and_the_time_is_of_one_call():
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    found = interleaved({"step": step}, rounds=2, min_seconds=0.02)["step"]
    assert calls >= 2 + 2 * 5
    assert all(0.001 <= t < 0.02 for t in found)
