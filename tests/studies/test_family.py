import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import ICConv2d
from studies.family import FReLU, LearnedSums, Maxout, add_unit_
from studies.networks import SignalNet


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 3, stride=2, padding=1).double()


X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_one_sum_of_ones_is_the_ic_unit() -> None:
    """A = -w', B = ones: then the learned sum is the receptive field's."""
    unit = LearnedSums(conv(), 1).double()
    nn.init.ones_(unit.sums.weight)
    collision, offset = torch.randn(5).double(), torch.randn(5).double()
    unit.mix.data, unit.inner_bias.data = -collision[:, None], offset
    ic = ICConv2d(3, 5, 3, stride=2, padding=1, bias=False, scale="sum").double()
    ic.weight.data, ic.collision.data, ic.inner_bias.data = unit.conv.weight.data, collision, offset
    unit.conv.bias = None
    torch.testing.assert_close(unit(X), ic(X))


def test_each_formula() -> None:
    own, free, two = LearnedSums(conv(), 2, own=True).double(), FReLU(conv()).double(), Maxout(conv()).double()
    s = own.sums(X)
    p = sum(own.mix[:, r].view(-1, 1, 1) * s[:, r : r + 1] for r in range(2)) + own.inner_bias.view(-1, 1, 1)
    torch.testing.assert_close(own(X), torch.maximum(own.conv(X), p))
    torch.testing.assert_close(two(X), torch.maximum(two.conv(X), two.other(X)))
    y = free.conv(X)
    depthwise = F.conv2d(y, free.depthwise.weight, padding=1, groups=5)
    torch.testing.assert_close(free.eval()(X), torch.maximum(y, depthwise / (1 + free.norm.eps) ** 0.5))


@pytest.mark.parametrize("kind", ["sums", "maxout"])
def test_a_gain_of_0_keeps_the_function_and_learns(kind: str) -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    expected = net(X)
    add_unit_(net, kind, gain=0.0, **({"rank": 4, "own": True} if kind == "sums" else {}))
    net.double()
    assert torch.equal(net(X), expected)
    net(X).sum().backward()
    assert bool(net[0].gain.grad.any())


def test_a_network_of_such_units() -> None:
    sizes = {"channels": 8, "unit": "sums", "unit_options": {"rank": 4, "own": True}}
    net = SignalNet(10, **sizes)
    assert sum(isinstance(m, LearnedSums) for m in net.modules()) == 3
    assert net(torch.randn(2, 1, 40)).shape == (2, 10)
    assert SignalNet(10, channels=8, widen=1.25).head.in_features == 50
    with pytest.raises(ValueError, match="'soms'; it must be one of sums, maxout, frelu"):
        SignalNet(10, unit="soms")
