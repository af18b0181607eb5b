import math

import numpy as np
import pytest
from scipy import stats

from icnets.comparison.statistics import Interval, t_interval, t_quantile
from significance import holm, paired_difference, paired_p


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 29, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantile_equals_scipys(df: int, confidence: float) -> None:
    assert t_quantile(confidence, df) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, df), rel=1e-9)


def test_interval_equals_scipys() -> None:
    values = [3.1, 4.7, 2.2, 5.0, 3.9]
    own = t_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert (own.low, own.high) == pytest.approx((low, high), rel=1e-9)
    assert own.mean == pytest.approx(sum(values) / 5)
    assert own.n == 5


def test_paired_difference_equals_scipys_paired_test() -> None:
    a, b = [5.0, 4.1, 6.2, 5.5], [4.6, 4.0, 5.1, 5.2]
    own = paired_difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (own.low, own.high) == pytest.approx((low, high), rel=1e-9)
    # Pairing matters: the intervals of the two means overlap, that of the difference is narrower than either.
    assert own.high is not None
    assert own.low is not None
    single = t_interval(a)
    assert single.high is not None
    assert single.low is not None
    assert own.high - own.low < single.high - single.low


@pytest.mark.parametrize("n", [2, 3, 5, 10, 31])
def test_paired_p_equals_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.6, 1, n).tolist(), rng.normal(0, 1, n).tolist()
    assert paired_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_paired_p_at_its_ends() -> None:
    assert paired_p([1.0], [2.0]) is None
    assert paired_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_p([2.0, 3.0], [1.0, 2.0]) == 0.0


def test_overlapping_folds_widen_the_interval_as_nadeau_and_bengio_say() -> None:
    a, b = [5.0, 4.1, 6.2, 5.5, 5.1], [4.6, 4.0, 5.1, 5.2, 5.3]
    differences = np.subtract(a, b)
    scale = differences.std(ddof=1) * math.sqrt(1 / 5 + 1 / 4)
    low, high = stats.t.interval(0.95, 4, loc=differences.mean(), scale=scale)
    own = paired_difference(a, b, overlap=1 / 4)
    assert (own.low, own.high) == pytest.approx((low, high), rel=1e-9)
    assert paired_p(a, b, overlap=1 / 4) == pytest.approx(2 * stats.t.sf(differences.mean() / scale, 4), rel=1e-9)


def test_holm_by_hand() -> None:
    # Ordered 0.01, 0.02, 0.03, 0.4: times 4, 3, 2, 1, and never below one before it.
    assert holm([0.03, None, 0.01, 0.4, 0.02]) == pytest.approx([0.06, None, 0.04, 0.4, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.04]) == [0.04]


def test_holm_rejects_what_its_definition_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.06, 6)
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - rank):
                break
            rejected.add(i)
        assert {i for i, q in enumerate(holm(p.tolist())) if q is not None and q <= 0.05} == rejected


def test_one_value_has_no_interval() -> None:
    assert t_interval([2.5]) == Interval(2.5, None, None, 1)
    assert not t_interval([2.5]).excludes_zero
    assert t_interval([2.5]).format() == "2.50"


def test_equal_values_have_an_interval_without_width() -> None:
    assert t_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.5, True), (-0.5, -0.1, True), (-0.1, 0.1, False), (0.0, 0.5, False)]
)
def test_excludes_zero(low: float, high: float, excludes: bool) -> None:
    assert Interval((low + high) / 2, low, high, 3).excludes_zero is excludes


def test_format() -> None:
    assert Interval(-0.304, -0.91, 0.302, 3).format(1, signed=True) == "−0.3 [−0.9, +0.3]"
    assert Interval(-0.001, -0.01, 0.002, 3).format(1, signed=True) == "0.0 [0.0, 0.0]"
    assert Interval(4.0, 3.5, 4.5, 3).format() == "4.00 [3.50, 4.50]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "at least one"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 values and b has 1"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
