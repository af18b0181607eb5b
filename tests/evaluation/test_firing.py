import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets import ICConfig, ICConv2d, ICConvTranspose2d, ICLinear, convert_
from icnets.evaluation.firing import firing_rates, firing_share


class Same(nn.Conv2d):
    """Pads by itself."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def naive(x, conv, padding):
    """Share of places where (y - bias) - w's + b1 > 0, from the definition in float64."""
    x = F.pad(x, padding).double()
    y = F.conv2d(x, conv.weight.double(), stride=conv.stride, groups=conv.groups)
    s = F.conv2d(x, torch.ones_like(conv.weight[:: len(conv.weight) // conv.groups]).double(), stride=conv.stride,
                 groups=conv.groups)  # fmt: skip
    s = s.repeat_interleave(len(conv.weight) // conv.groups, 1)
    u = y - conv.collision_weight.double().view(-1, 1, 1) * s + conv.inner_bias.double().view(-1, 1, 1)
    return (u > 0).double().mean().item()


@pytest.mark.parametrize(
    ("layer", "padding"),
    [
        (nn.Conv2d(4, 6, 3, 2, 1), (1, 1, 1, 1)),
        (nn.Conv2d(4, 6, 3, groups=2), (0, 0, 0, 0)),
        (Same(4, 6, 2), (0, 1, 0, 1)),
    ],
)
def test_against_the_definition(layer, padding):
    model = nn.Sequential(layer)
    convert_(model, ICConfig(), optimizers=())
    with torch.no_grad():
        model[0].collision.normal_()
        model[0].inner_bias.normal_()
    x = torch.randn(3, 4, 9, 9)
    assert firing_rates(model, x) == {"0": pytest.approx(naive(x, model[0], padding), abs=1e-3)}
    assert not model[0]._forward_hooks


def test_the_gain_is_left_aside_and_so_is_a_unit_that_does_not_run():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.used(self.used(x)[:, :3])

    model = Two()
    convert_(model, ICConfig(warm_start="gain"), optimizers=())
    x = torch.randn(2, 3, 9, 9)
    rates = firing_rates(model, x)
    assert 0.2 < rates["used"] < 0.8
    with torch.no_grad():
        first = naive(x, model.used, (0, 0, 0, 0))
        second = naive(model.used(x)[:, :3], model.used, (0, 0, 0, 0))
    assert rates == {"used": pytest.approx((first + second) / 2, abs=1e-3)}


def test_a_unit_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(input=x)

    model, x = Keyword(), torch.randn(2, 3, 9, 9)
    convert_(model)
    assert firing_rates(model, x) == {"conv": firing_share(model.conv, x)}


def test_a_network_in_training_mode_keeps_its_statistics_and_the_random_state():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
    convert_(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert firing_rates(model, torch.ones(2, 4, 8, 8)).keys() == {"0"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def randomised(unit: nn.Module) -> nn.Module:
    with torch.no_grad():
        for vector in unit.vectors():
            if vector is not None:
                vector.copy_(torch.randn_like(vector))
    return unit


UNITS = [
    (ICConv2d(4, 6, 3, padding=1, bias=False), (3, 4, 9, 8)),
    (ICConv2d(4, 6, 3, stride=2, groups=2, dilation=2, scale="sum", gain=0.5), (3, 4, 9, 8)),
    (ICConv2d(4, 4, 1, groups=4, inner_bias=False), (3, 4, 5, 5)),
    (ICConvTranspose2d(4, 6, 3, stride=2, groups=2), (3, 4, 5, 5)),
    (ICLinear(7, 5, gain=-1.0), (6, 7)),
]


@pytest.mark.parametrize(("unit", "shape"), UNITS, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_share_is_counted_as_the_formula_has_it(unit: nn.Module, shape: tuple[int, ...]) -> None:
    randomised(unit)
    x = torch.randn(shape)
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    u = argument(unit, x.double())
    assert firing_share(unit, x) == pytest.approx(float((u > 0).double().mean()), abs=1e-9)
    assert 0 < float((u > 0).double().mean()) < 1
    assert all(torch.equal(before[key], value) for key, value in unit.state_dict().items())


def argument(unit: nn.Module, x: Tensor) -> Tensor:
    """y - w's + b1 with s by a kernel of ones, in float64."""
    channels = [1, -1, *[1] * (x.dim() - 2)]
    weight = unit.weight.detach().double()
    ones = torch.ones_like(weight)
    if isinstance(unit, ICLinear):
        y, s = F.linear(x, weight), F.linear(x, ones)
    elif isinstance(unit, ICConvTranspose2d):
        options = {"stride": unit.stride, "padding": unit.padding, "groups": unit.groups, "dilation": unit.dilation}
        y, s = (F.conv_transpose2d(x, w, **options) for w in (weight, ones))
    else:
        options = {"stride": unit.stride, "padding": unit.padding, "groups": unit.groups, "dilation": unit.dilation}
        y, s = (F.conv2d(x, w, **options) for w in (weight, ones))
    collision, inner_bias, _ = unit.vectors()
    u = y - unit.sum_scale * collision.detach().double().view(channels) * s
    return u if inner_bias is None else u + inner_bias.detach().double().view(channels)
