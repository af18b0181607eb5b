import doctest
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def test_every_example_is_tested():
    assert {p.stem for p in FOLDER.glob("*.py")} == {"shapes", "faster_rcnn", "mask_rcnn", "deeplabv3", "timm_task"}


def test_the_example_of_the_timm_task_runs():
    from examples import timm_task

    assert doctest.testmod(timm_task) == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "deeplabv3"])
def test_the_loss_goes_down(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.main(steps=20)
    sys.modules.pop("shapes", None)
    assert "skipped 0" in capsys.readouterr().out
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
