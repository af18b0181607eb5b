import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def imagenet_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("imagenet_cost")


def test_the_page_is_what_the_program_writes(imagenet_cost: ModuleType) -> None:
    page = imagenet_cost.PAGE.read_text(encoding="utf-8")
    assert page.count(imagenet_cost.START) == page.count(imagenet_cost.END) == 1
    assert imagenet_cost.updated(page, imagenet_cost.Costs.read()) == page


def test_the_published_numbers_come_back(imagenet_cost: ModuleType) -> None:
    costs = imagenet_cost.Costs.read()
    assert costs.speed("resnet50", "basic", 1) == 2470
    assert costs.speed("resnet50", "basic", 8) == 16621
    assert costs.speed("resnet50", "basic", 64) == pytest.approx(8 * 16621 * 0.9)
    # NVIDIA says about 14 hours for 90 epochs on one GPU, and about 3 on eight.
    assert costs.hours("resnet50", "basic", "plain", 1) == pytest.approx(14, abs=1)
    assert costs.hours("resnet50", "basic", "plain", 8) == pytest.approx(2, abs=0.5)


def test_ratios_are_those_measured(imagenet_cost: ModuleType) -> None:
    costs = imagenet_cost.Costs.read()
    ratio = costs.measured["resnet50", "ic-all", "training", 8].ratio.median
    assert costs.seconds("resnet50", "ic") / costs.seconds("resnet50", "basic") == pytest.approx(ratio)
    assert costs.seconds("resnet101", "ic") / costs.seconds("resnet101", "basic") == pytest.approx(ratio)
    teacher = costs.measured["resnet50", "basic", "eager", 8].seconds
    assert costs.seconds("resnet50", "ic_wld") - costs.seconds("resnet50", "ic") == pytest.approx(teacher)
    assert costs.seconds("resnet101", "ic_wld") > costs.seconds("resnet101", "ic") > costs.seconds("resnet50", "ic_wld")


@pytest.mark.slow
def test_the_memory_is_what_is_measured(imagenet_cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_cost, "NETWORKS", ("resnet50",))
    known = imagenet_cost.Costs.read().memory["resnet50"]
    for method, found in imagenet_cost.measure()["resnet50"].items():
        assert found["parameters"] == known[method]["parameters"]
        assert found["per_image"] == pytest.approx(known[method]["per_image"], rel=0.02)
