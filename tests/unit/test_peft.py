"""peft's adapters and IC units, in both orders: right, or refused."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from icnets import ICConfig, convert_, ic_parameters, revert_

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="peft isn't installed", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

ADAPTERS = {
    "LoRA": lambda **kw: peft.LoraConfig(init_lora_weights=False, **kw),
    "DoRA": lambda **kw: peft.LoraConfig(init_lora_weights=False, use_dora=True, **kw),
    "AdaLoRA": lambda **kw: peft.AdaLoraConfig(init_lora_weights=False, total_step=10, **kw),
    "LoHa": lambda **kw: peft.LoHaConfig(init_weights=False, **kw),
    "LoKr": lambda **kw: peft.LoKrConfig(init_weights=False, **kw),
    "IA3": lambda **kw: peft.IA3Config(init_ia3_weights=False, feedforward_modules=[], **kw),
}
X = torch.randn(8, 5, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    convs = nn.Sequential(nn.Conv2d(5, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3))
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def converted(model, warm_start="none"):
    report = convert_(model, ICConfig(linear=True, warm_start=warm_start), optimizers=())
    with torch.no_grad():
        for name, vector in ic_parameters(model):
            if not name.endswith("gain"):
                vector.normal_(0, 0.3)
    return report


def adapted(model, name, target):
    torch.manual_seed(1)
    return peft.get_peft_model(model, ADAPTERS[name](target_modules=[target])).eval()


def off_by(model, y):
    with torch.no_grad():
        return float((model(X) - y).abs().max() / y.abs().max())


@pytest.mark.parametrize("target", ["0", "4"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_silent_units_is_merged_as_of_basic_ones(name, target):
    y = adapted(network(), name, target)(X).detach()
    silent = network()
    converted(silent, "gain")
    model = adapted(silent, name, target)
    assert off_by(model, y) < 1e-5
    assert off_by(model.merge_and_unload(), y) < 1e-5


def test_an_untrained_adapter_of_units_merges_since_it_changes_nothing():
    base = network()
    converted(base)
    y = base(X).detach()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "4"])).eval()
    assert off_by(model.merge_and_unload(), y) == 0


@pytest.mark.parametrize("target", ["0", "4"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_units_is_right_and_stays_unmerged(name, target):
    base = network()
    converted(base)
    alone = base(X).detach()
    model = adapted(base, name, target)
    y = model(X).detach()
    assert off_by(base, alone) > 1e-3
    for merge in (model.merge_and_unload, model.merge_adapter, copy.deepcopy(model).merge_and_unload):
        with pytest.raises(TypeError, match="would lose their collisions; leave the adapter unmerged"):
            merge()
        assert off_by(model, y) == 0
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert off_by(again, y) == 0
        if name != "AdaLoRA":  # of which there may be only one
            again.add_adapter("second", ADAPTERS[name](target_modules=[target]))
        assert not any("second" in unit for unit, _ in ic_parameters(again))
    units = [n for n, _ in ic_parameters(model)]
    assert units == [n for n, _ in ic_parameters(again)]
    assert not any("lora" in unit for unit in units)
    left = model.unload()
    assert off_by(left, alone) == 0
    assert type(left[int(target)])(2, 3, *([1] if target == "0" else [])).collision is not None  # its own class again


@pytest.mark.parametrize("name", ["LoRA", "LoHa", "IA3"])
def test_conversion_leaves_the_factors_of_adapters_alone(name):
    model = adapted(network(), name, "0")
    y = model(X).detach()
    report = converted(model, "gain")
    assert "base_model.model.0.base_layer" in report.converted
    assert all("base_layer" in n or n[-1] in "246" for n in report.converted)
    assert {v for k, v in report.skipped.items() if "lora_" in k} <= {"it belongs to an adapter (Conv2d)"}
    assert off_by(model, y) < 1e-5
    with torch.no_grad():
        for vector_name, vector in ic_parameters(model):
            if vector_name.endswith("gain"):
                vector.fill_(0.5)
    with pytest.raises(TypeError, match="would lose their collisions"):
        model.merge_and_unload()
    revert_(model)
    assert off_by(model.merge_and_unload(), y) < 1e-5


@pytest.mark.parametrize(
    "make", [lambda **kw: peft.HRAConfig(**kw), lambda **kw: peft.BOFTConfig(boft_block_size=1, **kw)]
)
def test_adapters_that_compute_with_the_weight_are_refused(make):
    base = network()
    converted(base)
    y = base(X).detach()
    with pytest.raises(TypeError, match=r"computes with the weight of its base layer, a ICConv2d, without calling it"):
        peft.get_peft_model(base, make(target_modules=["0"]))
    assert off_by(base, y) == 0
    basic = network()
    model = peft.get_peft_model(basic, make(target_modules=["0"])).eval()
    reason = converted(model).skipped["base_model.model.0.base_layer"]
    assert reason.endswith("reads its weight without calling it")


def test_a_unit_is_trained_whole_beside_an_adapter():
    base = network()
    converted(base)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"], modules_to_save=["6"]))
    model(X).sum().backward()
    grads = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.split(".")[-3 if "lora" in n else -1] for n in grads} >= {"lora_A", "lora_B", "collision", "weight"}
    assert not any("base_layer" in n for n in grads)
