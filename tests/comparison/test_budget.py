"""Epochs and seeds by the minute."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnets.comparison import budget
from icnets.comparison.budget import Budget, Pace, budgeted, chosen, measure, pace_of, probes, with_more_seeds
from icnets.comparison.planned_runs import plan
from icnets.comparison.settings import ComparedTraining, Method, Network, Settings

SIZES = {"train": 180, "val": 45, "test": 75}
PACES = [Pace(0.002, 0.0007, 0.5), Pace(0.003, 0.001, 0.7)]


def total(found: Budget, paces: list[Pace]) -> float:
    return found.seeds * sum(pace.run(found.epochs, SIZES) for pace in paces)


@given(
    minutes=st.floats(0.5, 600),
    step=st.floats(1e-4, 10),
    forward=st.floats(0.1, 0.5),
    dearer=st.floats(1, 3),
    rest=st.floats(0, 20),
)
def test_what_is_chosen_fits_and_uses_the_time(minutes, step, forward, dearer, rest):
    paces = [Pace(step, forward * step, rest)] + 4 * [Pace(dearer * step, dearer * forward * step, rest)]
    found = chosen("", minutes, paces, SIZES, gone=10)
    left = 60 * minutes - 10
    if found.seeds * found.epochs > 1:
        assert total(found, paces) <= left
    more = replace(found, seeds=found.seeds + 1) if found.seeds < 10 else replace(found, epochs=found.epochs + 1)
    if found.seeds < 10 or found.epochs < 30:
        assert total(more, paces) > 0.9 * (left - 12)


def test_three_seeds_come_before_long_trainings():
    slow = [Pace(0.05, 0.02, 2)] + 4 * [Pace(0.08, 0.03, 2)]
    assert (found := chosen("", 10, slow, SIZES, gone=10)).seeds >= 3
    assert found.epochs < 10
    assert chosen("", 60, PACES, SIZES, gone=10).seeds == 10
    assert chosen("", 1, slow, SIZES, gone=10).seeds < 3  # and that is said


def settings(tmp_path, **changes) -> Settings:
    ic = Method("IC", start="gain", ic=budget_ic(), wld=True)
    network = Network("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8})
    data = {"train_size": 60, "image_size": 16, "batch_size": 20}
    return Settings([Method("basic"), ic], data, tmp_path, network=network, workers=1, **{"minutes": 1.0, **changes})


def budget_ic():
    from icnets import ICConfig

    return ICConfig()


class OneWorker:
    count = 1
    asked = 0

    def paces(self, jobs):
        self.asked += 1
        return PACES


def test_a_budget_is_kept_and_other_minutes_change_the_seeds_alone(tmp_path, capsys):
    workers, seen = OneWorker(), {"sizes": SIZES}
    first = settings(tmp_path, minutes=5.0)
    applied, expected = budgeted(first, plan(first), workers, seen, budget.time.monotonic())
    assert applied.minutes is None
    assert expected.keys() == {"basic · basic · plain · 100 %", "IC · IC · plain · 100 %"}
    again, _ = budgeted(first, plan(first), workers, seen, budget.time.monotonic())
    assert again == applied
    assert workers.asked == 1
    longer = settings(tmp_path, minutes=10.0)
    more, _ = budgeted(longer, plan(longer), workers, seen, budget.time.monotonic())
    assert len(more.seeds) == 2 * len(applied.seeds)
    assert more.training == applied.training
    assert f"{len(applied.seeds)} seeds of {applied.training.epochs} epochs" in capsys.readouterr().out


def test_time_that_is_left_is_for_more_seeds(tmp_path):
    first = settings(tmp_path, minutes=5.0)
    applied, _ = budgeted(first, plan(first), OneWorker(), {"sizes": SIZES}, budget.time.monotonic())
    done = replace(applied, seeds=[0, 1, 2])
    assert with_more_seeds(done, 5.0, gone=250.0, a_seed=40.0) is None
    more = with_more_seeds(done, 5.0, gone=190.0, a_seed=40.0)
    assert more == replace(done, seeds=[0, 1, 2, 3, 4])
    again, _ = budgeted(first, plan(first), OneWorker(), {"sizes": SIZES}, budget.time.monotonic())
    assert again.seeds == more.seeds


def test_the_budget_of_another_comparison_is_refused(tmp_path):
    first = settings(tmp_path)
    budgeted(first, plan(first), OneWorker(), {"sizes": SIZES}, budget.time.monotonic())
    with pytest.raises(ValueError, match="of another comparison"):
        budgeted(first, plan(first), OneWorker(), {"sizes": SIZES | {"train": 1}}, budget.time.monotonic())
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        budgeted(first, plan(first), OneWorker(), {"sizes": SIZES}, budget.time.monotonic())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, "seeds is .* but minutes chooses it"),
        ({"training": ComparedTraining(epochs=3)}, "training.epochs is 3, but minutes chooses it"),
        ({"minutes": 0.0}, "minutes is 0.0; it must be positive"),
    ],
)
def test_what_contradicts_a_budget_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **change)


def test_what_a_teacher_and_collisions_cost_is_told_apart():
    basic, other = Pace(1.0, 0.25, 1), Pace(2.0, 0.5, 1)
    paces = [pace_of(Method(n, **m), basic, other).step for n, m in (("a", {}), ("b", {"wld": True}))]
    assert paces == [1.0, 1.25]
    ic = budget_ic()
    assert [pace_of(Method("c", ic=ic, wld=w), basic, other).step for w in (False, True)] == [1.75, 2.0]


def test_a_pace_is_that_of_the_job(tmp_path):
    jobs = plan(settings(tmp_path))
    basic, other = probes(jobs)
    assert (basic.ic, other.ic is None, other.wld is None) == (None, False, False)
    pace = measure(other)
    assert 0 < pace.forward < pace.step < 1
    assert pace.rest > 0
    assert list(tmp_path.iterdir()) == []  # nothing is kept of it
