import pytest

from icnets.messages import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("shapes differ\nat x.py:1\nat y.py:2"), "shapes differ"),
        (RuntimeError("\n  out of memory \nat x.py:1"), "out of memory"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_the_first_line_that_says_something(error, line):
    assert first_line(error) == line
