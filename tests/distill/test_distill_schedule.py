"""lambda(t) at the start, in the warm-up, the hold and the end, for every kind."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnets.distill.loss import DistillationSchedule

KINDS = ("hold-cosine", "constant", "linear", "cosine", "early-off")


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (DistillationSchedule(weight=1.0), {0.0: 1.0, 0.4: 1.0, 0.7: 0.5, 0.55: 0.5 + math.sqrt(0.125), 1.0: 0.0}),
        (DistillationSchedule(weight=1.0, warmup=0.2), {0.0: 0.0, 0.05: 0.25, 0.2: 1.0, 0.4: 1.0, 0.7: 0.5, 1.0: 0.0}),
        (DistillationSchedule(weight=1.0, hold=1.0), {0.0: 1.0, 1.0: 1.0}),
        (DistillationSchedule("constant", weight=2.0, warmup=0.1), {0.0: 0.0, 0.05: 1.0, 0.1: 2.0, 1.0: 2.0}),
        (DistillationSchedule("linear", weight=1.0, warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        (DistillationSchedule("cosine", weight=1.0, warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        (DistillationSchedule("cosine", weight=1.0), {0.0: 1.0, 0.25: 0.5 + math.sqrt(0.125), 1.0: 0.0}),
        (
            DistillationSchedule("early-off", weight=1.0, warmup=0.25),
            {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.4999: 1.0, 0.5: 0.0},
        ),
    ],
    ids=str,
)
def test_schedule_at_the_start_in_the_warmup_hold_and_end(
    schedule: DistillationSchedule, points: dict[float, float]
) -> None:
    for progress, expected in points.items():
        assert schedule(progress) == pytest.approx(expected, abs=1e-12), progress


@pytest.mark.parametrize("kind", ["hold-cosine", "linear", "cosine", "early-off"])
def test_decaying_schedules_end_at_exactly_zero(kind: str) -> None:
    assert DistillationSchedule(kind, weight=3.0, warmup=0.1)(1.0) == 0.0  # type: ignore[arg-type]


@given(
    kind=st.sampled_from(KINDS),
    weight=st.floats(0, 10),
    warmup=st.floats(0, 0.4),
    times=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_schedules_rise_then_never_rise_again(
    kind: str, weight: float, warmup: float, times: tuple[float, float]
) -> None:
    schedule = DistillationSchedule(kind, weight=weight, warmup=warmup)  # type: ignore[arg-type]
    early, late = sorted(times)
    assert 0.0 <= schedule(early) <= weight
    if late < warmup:
        assert schedule(early) <= schedule(late)
    if early >= warmup:
        assert schedule(early) >= schedule(late)


def test_progress_outside_is_an_error_and_rounding_is_not() -> None:
    schedule = DistillationSchedule("linear", weight=1.0)
    assert (schedule(-1e-7), schedule(1 + 1e-7)) == (1.0, 0.0)
    for progress in (-0.01, 1.01, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\].*got"):
            schedule(progress)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cosin"}, r"one of hold-cosine, constant, linear, cosine, early-off, got 'cosin'"),
        ({"weight": -1.0}, r"weight must be in \[0, inf\), got -1.0"),
        ({"weight": math.inf}, r"weight must be in \[0, inf\), got inf"),
        ({"weight": math.nan}, r"weight must be in \[0, inf\), got nan"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"hold": 1.5}, r"hold must be in \[0, 1\], got 1.5"),
        ({"off": -0.5}, r"off must be in \[0, 1\], got -0.5"),
        ({"warmup": 0.5}, r"warmup must be in \[0, hold\] = \[0, 0.4\] for 'hold-cosine', got 0.5"),
        ({"kind": "early-off", "warmup": 0.6}, r"warmup must be in \[0, off\] = \[0, 0.5\]"),
    ],
)
def test_schedule_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationSchedule(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"weight must be a number in \[0, inf\), got '1'"):
        DistillationSchedule(weight="1")  # type: ignore[arg-type]
