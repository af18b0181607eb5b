import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from icnets import ICConfig, create_model

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


@pytest.mark.parametrize("ic", [None, ICConfig()])
def test_activations_are_what_the_allocator_still_holds_after_the_forward_pass(
    imagenet_cost: ModuleType, ic: ICConfig | None
) -> None:
    network = create_model("resnet10t", ic=ic, num_classes=10, in_chans=1, channels=[8, 8, 16, 16], stem_width=8)
    before = {name: value.clone() for name, value in network.train().state_dict().items()}
    sample = torch.zeros(3, 1, 64, 64)
    fixed, per_image = imagenet_cost.activation_bytes(network, sample)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    found = [allocated(network, sample.repeat(times, 1, 1, 1)) for times in (1, 2)]
    assert per_image == pytest.approx((found[1] - found[0]) / 3, rel=0.02)
    assert fixed + 3 * per_image == pytest.approx(found[0], rel=0.02)


def allocated(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes that torch's allocator gave out in a forward pass in bfloat16 and did not get back."""
    memory = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with memory as profiler, torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(x)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.events())
