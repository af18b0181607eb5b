"""The charts' axes: linear, labelled, and nothing outside of their range."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from icnets.comparison.comparison_table import Cost, Reached, Row
from icnets.comparison.statistics import Interval
from icnets.profile.measure import Count, Latency
from icnets.report import charts


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of all charts that are drawn."""
    found: list[Any] = []

    def draw(name: str, paint: Any, **words: str) -> None:
        found.append(Figure().subplots())
        paint(found[-1])

    monkeypatch.setattr(charts, "draw", draw)
    return found


def require_plain(axes: Any) -> None:
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert len(axes.get_xticks()) > 1
    assert len(axes.get_yticks()) > 1


def test_bands_of_curves_are_clipped(painted: list[Any]) -> None:
    values = [[99.0, 1.0], [60.0, 0.0], [90.0, 0.5]]  # intervals far beyond 0 and 100
    charts.curve_charts([charts.Curve("basic", [1, 2], values, [0.5, 1.0], warm=False)])
    assert len(painted) == 2
    for axes in painted:
        require_plain(axes)
        assert axes.get_ylim()[0] == 0
        assert 83 < axes.get_ylim()[1] <= 100
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (0, 100)


def test_one_epoch_is_a_mark(painted: list[Any]) -> None:
    """A line through one point can't be seen."""
    one, two = (charts.Curve("a", list(range(1, n + 1)), [[9.0] * n], [0.5] * n, warm=False) for n in (1, 2))
    charts.curve_charts([one, two])
    assert [line.get_marker() for line in painted[0].get_lines()] == ["o", ""]


def test_errors_beside_costs_stay_between_0_and_100(painted: list[Any]) -> None:
    latency = Latency(1.0, 1.0, 1.0, 1.0, 5, 8, 1)
    for mean, low, high in ((1.0, -8.0, 10.0), (99.0, 80.0, 118.0)):
        error, cost = Interval(mean, low, high, 3), Cost(Count(9, 1), Count(9, 1), latency)
        row = Row("IC", "scratch", error, None, None, None, None, Reached(None, None, 0, 3), 1.0, cost)
        charts.cost_chart([row])
    for axes in painted:
        require_plain(axes)
        assert 0 <= axes.get_ylim()[0] < axes.get_ylim()[1] <= 100


def test_losses_of_two_runs_have_one_pair_of_axes(painted: list[Any]) -> None:
    points = [(1.0, 2.0), (2.0, 1.0)]
    charts.loss_chart({"a": {"train/loss": points, "val/loss": points}, "b": {"train/loss": points, "val/loss": []}})
    (axes,) = painted
    require_plain(axes)
    assert [line.get_label() for line in axes.lines] == ["a train/loss", "a val/loss", "b train/loss"]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
