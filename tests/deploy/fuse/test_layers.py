"""One layer's deployed form is exact: every option, gain, norm and dtype."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import strategies
from deploy.fuse.networks import random_norm, relative_error
from icnets import ICConv2d
from icnets.deploy.fuse import fuse_
from icnets.unit.deployed import FusedICConv2d
from icnets.unit.layers import IC_LAYERS

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
GAINS = [-2.0, -1.0, -0.5, 0.0, 1.0, 0.7]


def random_gain(layer: nn.Module, gains: list[float], seed: int) -> None:
    if layer.gain is not None:
        index = torch.randint(len(gains), layer.gain.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            layer.gain.copy_(torch.tensor(gains)[index])


def norm_for(layer: nn.Module, kind: str, seed: int) -> nn.Module:
    nd = len(getattr(layer, "kernel_size", (1,)))
    if kind == "none":
        return nn.Identity()
    options = {"eps": 0.1} if kind == "eps" else {"affine": kind != "plain"}
    norm = NORMS[nd](layer.weight.shape[0], dtype=torch.float64, **options)
    return random_norm(norm, seed)


KINDS = st.sampled_from(["affine", "plain", "eps", "none"])


@given(strategies.convs(), KINDS, st.lists(st.sampled_from(GAINS), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=100)
def test_convolutions_are_exact(case, kind, gains, seed):
    layer, x = case
    random_gain(layer, gains, seed)
    model = nn.Sequential(layer, norm_for(layer, kind, seed)).eval()
    expected = model(x)
    report = fuse_(model, x)
    assert report.fused == ["0"]
    assert report.folded == ({} if kind == "none" else {"1": "0"})
    assert isinstance(model[1], nn.Identity)
    assert not isinstance(model[0], IC_LAYERS)
    assert relative_error(model(x), expected) < 1e-12
    assert relative_error(model[0](x[0]), expected[0]) < 1e-12  # unbatched


@given(strategies.linears(), st.lists(st.sampled_from(GAINS), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=40)
def test_linears_are_exact(case, gains, seed):
    layer, x = case
    random_gain(layer, gains, seed)
    with_norm = x.dim() == 2
    model = nn.Sequential(layer, norm_for(layer, "affine" if with_norm else "none", seed)).eval()
    expected = model(x)
    report = fuse_(model, x)
    assert report.folded == ({"1": "0"} if with_norm else {})
    assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_one_gain_makes_one_slope(gain, sign):
    layer = strategies.randomise(ICConv2d(4, 6, 3, padding=1, gain=gain, dtype=torch.float64), 1)
    random_gain(layer, [gain], 0)
    norm = random_norm(nn.BatchNorm2d(6, dtype=torch.float64), 2, zeros=False)
    with torch.no_grad():
        norm.weight.abs_().mul_({"positive": 1, "negative": -1, "both": torch.tensor([1, -1] * 3)}[sign])
    model, x = nn.Sequential(layer, norm).eval(), torch.randn(2, 4, 7, 7, dtype=torch.float64)
    expected = model(x)
    fuse_(model, x)
    assert relative_error(model(x), expected) < 1e-12
    if gain == 0:
        assert type(model[0]) is nn.Conv2d
    else:
        assert model[0].slope is None
        assert (model[0].sign is not None) == (sign == "both" or (sign == "negative") == (gain > -1))


@pytest.mark.parametrize("scale", ["zero", "some zero"])
def test_a_norm_of_weight_zero_is_exact(scale):
    layer = strategies.randomise(ICConv2d(3, 4, 3, dtype=torch.float64), 1)
    norm = random_norm(nn.BatchNorm2d(4, dtype=torch.float64))
    with torch.no_grad():
        norm.weight[: 4 if scale == "zero" else 2] = 0
    model, x = nn.Sequential(layer, norm).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    fuse_(model, x)
    assert relative_error(model(x), expected) < 1e-12
    assert isinstance(model[0], nn.Conv2d)


def test_no_rank_one_term_without_collision():
    layer = ICConv2d(3, 5, 3, bias=False).eval()
    x = torch.randn(1, 3, 6, 6)
    expected = layer(x)
    fuse_(layer, x)
    assert type(layer) is FusedICConv2d
    assert layer.collision is None
    assert layer.offset is None
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(dtype):
    layer = strategies.randomise(ICConv2d(8, 8, 3, groups=2), 0).eval()
    x = torch.randn(2, 8, 9, 9)
    expected = layer(x)
    layer.to(dtype)
    report = fuse_(layer, x.to(dtype))
    out = layer(x.to(dtype))
    assert out.dtype == dtype
    assert relative_error(out.float(), expected) < 16 * torch.finfo(dtype).eps
    assert report.max_relative_error < 16 * torch.finfo(dtype).eps


def test_autocast_and_memory_format():
    layer = strategies.randomise(ICConv2d(8, 8, 3), 0).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    expected = layer(x)
    fuse_(layer, x)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.1


def test_the_input_still_gets_its_gradient():
    for gain in (None, 0.3):
        layer = strategies.randomise(ICConv2d(4, 4, 3, gain=gain, dtype=torch.float64), 0).eval()
        twin = copy.deepcopy(layer)
        x = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
        fuse_(layer, x.detach())
        found, expected = (torch.autograd.grad(m(x).sin().sum(), x)[0] for m in (layer, twin))
        torch.testing.assert_close(found, expected)
        assert not any(p.requires_grad for p in layer.parameters())
