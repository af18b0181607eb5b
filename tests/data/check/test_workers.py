import pytest

from icnets.data.check.workers import each

DIES = "__import__('os')._exit(1)"


def test_results_and_their_indices() -> None:
    items = [f"{i} + 1" for i in range(70)]
    assert sorted(each(eval, items, 2)) == [(i, i + 1) for i in range(70)]
    assert list(each(eval, [], 2)) == []


def test_a_process_that_dies_costs_one_item() -> None:
    items = [DIES if i in (3, 40, 69) else str(i) for i in range(70)]
    assert sorted(each(eval, items, 2)) == [(i, None if i in (3, 40, 69) else i) for i in range(70)]


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        list(each(eval, ["1", "1 / 0"], 1))


def test_it_can_be_left_early() -> None:
    results = each(eval, ["1"] * 100, 1)
    index, value = next(results)  # whichever chunk is done first
    assert index in range(100)
    assert value == 1
    results.close()
