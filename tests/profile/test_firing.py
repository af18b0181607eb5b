import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import ICConfig, convert_
from icnets.profile.firing import firing_rates, firing_share


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
