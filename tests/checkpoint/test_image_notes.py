import pytest

from icnets.checkpoint.image_notes import ImageNotes, as_text, notes_of_cfg, read_notes


def test_notes_of_a_checkpoint() -> None:
    values = {"class_names": ["0", "1"], "mean": (0.3053,), "std": (0.376,), "image_size": 16, "in_chans": 1}
    notes = {key: as_text(value) for key, value in {**values, "crop_pct": 1.0, "interpolation": "bicubic"}.items()}
    assert notes["class_names"] == "0,1"
    assert read_notes({**notes, "epoch": "3"}) == ImageNotes(16, 1, (0.3053,), (0.376,), 1.0, "bicubic", ["0", "1"])


@pytest.mark.parametrize("names", [["a,b", "c"], ["[a", "b]"], ["[1]", "2"], ["true", "null"]])
def test_class_names_come_back(names: list[str]) -> None:
    assert read_notes({"class_names": as_text(names)}).class_names == names


def test_notes_of_an_artifact() -> None:
    found = read_notes({"input_size": "[3, 32, 32]", "mean": "[0.5, 0.4, 0.3]", "class_names": '["a", "b, c"]'})
    assert found == ImageNotes(32, 3, mean=(0.5, 0.4, 0.3), class_names=["a", "b, c"])
    assert found.transform == {"mean": (0.5, 0.4, 0.3)}


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"crop_pct": "half"}, "crop_pct as 'half'"),
        ({"mean": "0.5,x"}, "mean as '0.5,x'"),
        ({"input_size": "[3, 32, 48]"}, "3×32×48"),
    ],
)
def test_notes_without_sense(notes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_notes(notes)


def test_notes_of_timm() -> None:
    cfg = {
        "input_size": (3, 288, 288),
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    assert notes_of_cfg(cfg) == ImageNotes(288, 3, (0.5,) * 3, (0.2,) * 3, 0.9, "bicubic")
