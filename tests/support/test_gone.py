import pytest

from icnets.support.gone import without_gone


def test_defaults_of_options_that_are_gone_are_dropped() -> None:
    options = {"model": {"model": "resnet18"}, "data": {"root": None, "test_crops": 1, "predict_root": None}}
    assert without_gone(options) == {"model": {"model": "resnet18"}, "data": {"root": None}}
    assert options["data"] == {"root": None, "test_crops": 1, "predict_root": None}


def test_a_value_that_says_what_happens_anyhow_is_dropped() -> None:
    assert without_gone({"model": {"model": "resnet18", "check_teacher": False}}) == {"model": {"model": "resnet18"}}


def test_another_value_says_what_to_do_instead() -> None:
    with pytest.raises(
        ValueError, match=r"data\.test_crops is 10, but there is no option .* any more: the centre crop"
    ):
        without_gone({"data": {"test_crops": 10}})
    with pytest.raises(
        ValueError, match=r"data\.val_shards is 'a\.tar', but there is no option .*: unpack tar shards into"
    ):
        without_gone({"data": {"val_shards": "a.tar"}})


@pytest.mark.parametrize("options", [None, 3, "text", [1], {}, {"data": None}, {"data": "text"}])
def test_what_has_none_is_left_as_it_is(options: object) -> None:
    assert without_gone(options) == options
