from types import SimpleNamespace

import pytest

from icnets.comparison import grid


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(grid.time, "monotonic", lambda: now.seconds)
    return now


def test_something_is_said_before_the_first_run_is_done_if_that_takes_long(clock, capsys):
    progress = grid.Progress(runs=2, epochs=20)
    for _ in range(4):
        clock.seconds += 8
        progress.epoch()
    assert capsys.readouterr().out == "3 of 20 epochs of all runs; 0:24 gone, about 2:16 to go\n"
    for _ in range(6):
        progress.epoch()
    progress.finished(SimpleNamespace(method="IC", seed=3, error=4.5, seconds=40.0))
    last = capsys.readouterr().out.splitlines()
    assert last == ["[1/2] IC, seed 3: error 4.50 % after 40 s; 0:32 gone, about 0:32 to go"]


def test_short_runs_say_nothing_before_they_are_done(clock, capsys):
    progress = grid.Progress(runs=1, epochs=3)
    for _ in range(3):
        clock.seconds += 2
        progress.epoch()
    assert capsys.readouterr().out == ""
    progress.finished(SimpleNamespace(method="basic", seed=0, error=1.0, seconds=6.0))
    clock.seconds += 60
    progress.epoch()
    assert len(capsys.readouterr().out.splitlines()) == 1
