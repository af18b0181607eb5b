"""Which batch norms fold: those that a unit alone feeds, and that do what they are named for."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deploy.fuse.networks import Net, random_norm, relative_error
from icnets import ICConv2d, ICLinear
from icnets.deploy.fuse import fuse_
from icnets.unit.deployed import FusedICConv2d, FusedICLinear


def _twice(net, x):
    return net.bn(net.conv(net.bn(net.conv(x))))


def _kept_on_module(net, x):
    net.cache = [net.conv(x)]
    return net.bn(net.cache[0])


def _in_place(net, x):
    y = net.conv(x)
    y.relu_()
    return net.bn(y)


def _after(net, x):
    y = net.conv(x)
    z = net.bn(y)
    return z + y.mean()


FORWARDS = {
    "plainly": (lambda net, x: net.bn(net.conv(x)), True),
    "through an identity": (lambda net, x: net.bn(F.dropout(net.conv(x), 0.5, False)), True),
    "both shared, always together": (_twice, True),
    "residual": (lambda net, x: net.bn(y := net.conv(x)) + y, False),
    "read later": (_after, False),
    "two norms": (lambda net, x: net.bn(y := net.conv(x)) + net.other(y), False),
    "norm shared": (lambda net, x: net.bn(net.conv(x)) + net.bn(x), False),
    "layer shared": (lambda net, x: net.bn(net.conv(x)) + net.conv(x + 1), False),
    "layer shared by two norms": (lambda net, x: net.bn(net.conv(x)) + net.other(net.conv(x + 1)), False),
    "norm twice": (lambda net, x: net.bn(net.bn(net.conv(x))), False),
    "norm twice on the same": (lambda net, x: net.bn(y := net.conv(x)) * net.bn(y), False),
    "a view is read": (lambda net, x: net.bn(y := net.conv(x)) + y.view(-1).sum(), False),
    "something between": (lambda net, x: net.bn(net.conv(x).relu()), False),
    "something in place between": (_in_place, False),
    "a slice": (lambda net, x: net.bn(torch.cat([net.conv(x[:, :, :4]), net.conv(x[:, :, 4:])], 2)), False),
    "returned as well": (lambda net, x: {"y": [y := net.conv(x)], "z": net.bn(y)}, False),
    "kept on the module": (_kept_on_module, False),
    "read inside another unit": (lambda net, x: net.bn(y := net.conv(x)) + net.conv2(y), False),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_a_norm_folds_only_where_it_alone_reads(case):
    forward, folds = FORWARDS[case]
    model = Net(forward, conv2=ICConv2d(4, 4, 1, dtype=torch.float64)).eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    keys = lambda out: [*out["y"], out["z"]] if isinstance(out, dict) else [out]  # noqa: E731
    expected = keys(model(x))
    report = fuse_(model, x)
    assert ("bn" in report.folded) == folds
    assert isinstance(model.bn, nn.Identity) == folds
    assert ("bn" in report.skipped) == (not folds)
    assert type(model.conv) is FusedICConv2d
    for old, new in zip(expected, keys(model(x)), strict=True):
        assert relative_error(new, old) < 1e-12


def test_channels_of_a_linear_layer_are_not_a_norms():
    model = nn.Sequential(ICLinear(3, 4), random_norm(nn.BatchNorm1d(4))).eval()
    x = torch.randn(2, 4, 3)  # the norm's channels are dimension 1, the layer's are last
    expected = model(x)
    report = fuse_(model, x)
    assert report.skipped == {"1": "its channels are not the layer's"}
    torch.testing.assert_close(model(x), expected)
    assert type(model[0]) is FusedICLinear


class OddNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) ** 2


def _hooked(norm: nn.Module) -> nn.Module:
    norm.register_forward_hook(lambda m, a, out: out * 2)
    return norm


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
        (lambda: random_norm(OddNorm(4)), "OddNorm has behaviour of its own"),
        (lambda: _hooked(random_norm(nn.BatchNorm2d(4))), "hooks"),
        (lambda: nn.GroupNorm(2, 4), None),
        (lambda: nn.InstanceNorm2d(4, track_running_stats=True), None),
    ],
)
def test_norms_that_stay(norm, reason):
    model = Net(lambda net, x: net.bn(net.conv(x)), norm().double()).eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    kind, expected = type(model.bn), model(x)
    report = fuse_(model, x)
    assert type(model.bn) is kind
    assert report.folded == {}
    assert reason is None or reason in report.skipped["bn"]
    assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize("drop", [None, nn.Dropout])
def test_norms_with_an_activation_keep_it(drop):
    act = {"act_layer": nn.SiLU, "drop_layer": drop}
    for norm in (timm.layers.BatchNormAct2d(4, **act), timm.layers.FrozenBatchNormAct2d(4, **act)):
        model = Net(lambda net, x: net.bn(net.conv(x)), random_norm(norm.double())).eval()
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        expected = model(x)
        assert fuse_(model, x).folded == {"bn": "conv"}
        assert isinstance(model.bn.act, nn.SiLU)
        assert not [k for k in model.state_dict() if k.startswith("bn.")]
        assert relative_error(model(x), expected) < 1e-12


def test_frozen_and_synchronised_norms_fold():
    for norm in (FrozenBatchNorm2d(4, eps=0.01), nn.SyncBatchNorm(4)):
        model = Net(lambda net, x: net.bn(net.conv(x)), random_norm(norm.double())).eval()
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        expected = model(x)
        assert fuse_(model, x).folded == {"bn": "conv"}
        assert relative_error(model(x), expected) < 1e-12


def test_hooks_on_a_unit_see_what_they_saw():
    model = Net(lambda net, x: net.bn(net.conv(x))).eval()
    seen = []
    model.conv.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    model(x)
    report = fuse_(model, x)
    assert report.skipped == {
        "bn": "the layer before it has forward hooks",
        "other": "the example input doesn't reach it",
    }
    model(x)
    assert relative_error(seen[-1], seen[0]) < 1e-12
