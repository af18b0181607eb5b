"""The comparison of loaders, on a folder that is as small as can be."""

import json
from pathlib import Path

import pytest

import imagenet_like
import loader

pytestmark = [  # timm leaves the files to Python to close, and in this process its warnings are errors
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("auto_augment", [None, pytest.param("rand-m9-mstd0.5", marks=pytest.mark.slow)])
def test_loaders_are_compared_on_the_same_images(tmp_path: Path, auto_augment: str | None) -> None:
    imagenet_like.write(tmp_path / "set", imagenet_like.Settings(classes=2, train=4, val=1, scale=0.1))
    options = [
        "--size",
        "32",
        "--batch",
        "4",
        "--workers",
        "0",
        "--rounds",
        "1",
        "--results",
        str(tmp_path / "l.jsonl"),
    ]
    loader.main([str(tmp_path / "set"), *options, *(["--auto-augment", auto_augment] if auto_augment else [])])
    rows = {row["loader"]: row for row in map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())}
    assert set(rows) == {"folder", "timm", "timm, prefetcher"}
    assert {row["images"] for row in rows.values()} == {8}
    assert rows["timm"]["to_timm"]["median"] == 1
    expected = rows["folder"]["images_per_second"] / rows["timm"]["images_per_second"]
    assert rows["folder"]["to_timm"]["median"] == pytest.approx(expected, rel=0.01)


def test_waiting_is_a_part_of_the_epoch(tmp_path: Path) -> None:
    loader.main(["--waiting", "--size", "8", "--rounds", "2", "--results", str(tmp_path / "l.jsonl")])
    waited = json.loads((tmp_path / "l.jsonl").read_text())["waited"]
    assert 0 < waited["low"] <= waited["median"] <= waited["high"] < 1
