"""The remaining time, and what is said of it."""

import random
from types import SimpleNamespace

import pytest

from icnets.comparison import progress
from icnets.comparison.progress import Progress


def job(kind: str, number: int, epochs: int = 10) -> SimpleNamespace:
    return SimpleNamespace(id=f"{kind}-{number}", cell=kind, training=SimpleNamespace(epochs=epochs))


def run(method: str = "IC", seed: int = 3, error: float = 4.5, seconds: float = 40.0) -> SimpleNamespace:
    return SimpleNamespace(method=method, seed=seed, error=error, seconds=seconds)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_something_is_said_before_the_first_run_is_done_if_that_takes_long(clock, capsys):
    jobs = [job("IC", 0), job("IC", 1)]
    shown = Progress(jobs, workers=1)
    for _ in range(4):
        clock.seconds += 8
        shown.epoch("IC-0")
    assert capsys.readouterr().out == "3 of 20 epochs of all runs; 0:24 gone\n"
    shown.finished(jobs[0], run(), 90.0)
    last = capsys.readouterr().out.splitlines()
    assert last == ["[1/2] IC, seed 3: error 4.50 % after 40 s; 0:32 gone, about 1:30 to go"]


def test_short_runs_say_nothing_before_they_are_done(clock, capsys):
    one = job("basic", 0, epochs=3)
    shown = Progress([one], workers=1)
    for _ in range(3):
        clock.seconds += 2
        shown.epoch(one.id)
    assert capsys.readouterr().out == ""
    shown.finished(one, run(), 6.0)
    clock.seconds += 60
    shown.epoch(one.id)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_no_time_is_told_while_most_methods_are_unknown():
    jobs = [job(kind, seed) for seed in range(2) for kind in ("basic", "IC", "SE", "deeper")]
    shown = Progress(jobs, workers=1)
    shown.finished(jobs[0], run(), 10.0)
    assert shown.left is None
    shown.finished(jobs[1], run(), 20.0)
    assert shown.left is not None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("expected", [None, {"basic": 1.0, "IC": 1.4, "WLD": 1.6}])
@pytest.mark.parametrize("machine", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_is_right_within_a_factor_of_one_and_a_half(workers, expected, machine, seed):
    # Runs of unlike methods on a machine of another speed than was expected, each up to a tenth off.
    draw, true = random.Random(seed), {"basic": 1.0, "IC": 1.5, "WLD": 1.9}
    jobs = [job(kind, number) for number in range(5) for kind in true]
    seconds = {j.id: machine * true[j.cell] * 10 * draw.uniform(0.9, 1.1) for j in jobs}
    shown, now, waiting = Progress(jobs, workers, expected), 0.0, list(jobs)
    ends: list[tuple[float, SimpleNamespace]] = []
    told: list[tuple[float, float]] = []
    while waiting or ends:
        while waiting and len(ends) < workers:
            begun = waiting.pop(0)
            ends.append((now + seconds[begun.id], begun))
        ends.sort(key=lambda end: end[0])
        now, done = ends.pop(0)
        for other in jobs:
            running = next((end for end, j in ends if j is other), None)
            if running is not None:  # its epochs so far
                gone = 10 * (1 - (running - now) / seconds[other.id])
                while shown.begun[other.id] < int(gone):
                    shown.epoch(other.id)
        shown.finished(done, run(), seconds[done.id])
        if shown.left:
            told.append((now, shown.left))
    assert len(told) > 8
    for when, left in told:
        assert left / 1.5 - 0.2 * machine * 10 <= now - when <= 1.5 * left + 0.2 * machine * 10
