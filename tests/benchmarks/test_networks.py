import copy

import pytest
import torch
from torch import nn

from icnets import ICConv2d, fuse_
from networks import FAMILIES, VARIANTS, Family, build


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_network(tiny, variant, x):
    one, other = build(tiny, variant), build(tiny, variant)
    assert not one.training
    with torch.no_grad():
        assert torch.equal(one(x), other(x))
        assert not torch.equal(one(x), build(tiny, variant, seed=1)(x))


def test_no_norm_and_no_branch_is_a_shortcut(tiny, x):
    model = build(tiny, "ic-all")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight.abs() > 0.1).all() and (m.weight < 0).any() for m in norms)
    assert all(m.running_mean.abs().max() > 0 and m.momentum == 0.1 for m in norms)
    fires: list[float] = []

    def count(unit: nn.Module, args: tuple, z: torch.Tensor) -> None:
        y = unit._conv_forward(args[0], unit.weight, unit.bias)
        fires.append(float((z != y).float().mean()))

    units = [m for m in model.modules() if isinstance(m, ICConv2d)]
    for unit in units:
        unit.register_forward_hook(count)
    with torch.no_grad():
        model(x)
    assert len(fires) == len(units) > 10
    assert all(0.2 < rate < 0.8 for rate in fires)


def test_kxk_converts_the_larger_kernels_only(tiny):
    kernels = {m.kernel_size: type(m) for m in build(tiny, "ic-kxk").modules() if isinstance(m, nn.Conv2d)}
    assert kernels == {(7, 7): ICConv2d, (3, 3): ICConv2d, (1, 1): nn.Conv2d}


def test_attention_and_depth_are_there(tiny):
    from timm.layers import EcaModule, SEModule

    assert any(isinstance(m, SEModule) for m in build(tiny, "se").modules())
    assert any(isinstance(m, EcaModule) for m in build(tiny, "eca").modules())
    assert len(build(tiny, "deeper").layer4) == 1 + len(build(tiny, "basic").layer4)


@pytest.mark.parametrize("variant", ["se", "eca"])
def test_what_timm_lacks_is_refused(variant):
    with pytest.raises(ValueError, match=r"no (SE|ECA) form of mobilenetv2_100"):
        build(FAMILIES["mobilenetv2_100"], variant)


def test_unknown_variant_is_refused(tiny):
    with pytest.raises(ValueError, match="'ic'; it must be one of basic"):
        build(tiny, "ic")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [(n, v) for n in FAMILIES for v in ("basic", "ic-all", "deeper") if FAMILIES[n].has(v)],
)
def test_full_size_networks_are_steady_enough_to_be_fused_and_compared(name, variant):
    family: Family = FAMILIES[name]
    model = build(family, variant)
    x = torch.randn(1, 3, family.image_size, family.image_size)
    assert fuse_(copy.deepcopy(model), x).max_relative_error < 1e-4
