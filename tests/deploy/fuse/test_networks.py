"""Deployed networks are exact: every registered one, basic ones, timm's own way."""

import copy

import pytest
import timm
import torch
from torch import nn

import icnets
from deploy.fuse.networks import random_norm
from icnets import ICConfig
from icnets.deploy.batch_norm import is_norm
from icnets.deploy.fuse import fuse_
from icnets.unit.layers import IC_LAYERS


def random_network(name: str, image: int = 64, spread: float = 0.2) -> tuple[nn.Module, torch.Tensor]:
    """Random collisions, gains and norms whose statistics are those of data, as in a trained network."""
    model = icnets.create_model(name, num_classes=10, ic=ICConfig(warm_start="gain"))
    x = torch.randn(2, 3, image, image)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith(("collision", "inner_bias")):
                p.normal_(0, spread)
            elif key.endswith("gain"):
                p.normal_(0.5, 0.3)
        for m in model.modules():
            if is_norm(m):
                m.momentum = None
                m.weight.uniform_(0.5, 1.5).mul_(torch.randn_like(m.weight).sign())
                m.bias.normal_(0, 0.2)
                m.reset_running_stats()
        model.train()(torch.randn(4, 3, image, image))
        for m in model.modules():
            if is_norm(m):  # and off by some
                m.running_mean.add_(torch.randn_like(m.running_mean) * 0.1 * m.running_var.sqrt())
                m.running_var.mul_(torch.rand_like(m.running_var) + 0.5)
                # Channels that few images leave dead would be amplified 300-fold: no float32 network survives that.
                m.running_var.clamp_min_(0.1 * float(m.running_var.mean()))
    return model.eval(), x


FAST = {"ic_resnet18": 20, "ic_mobilenetv2_100": 52, "ic_efficientnet_b0": 49}
SLOW = {
    "ic_densenet121": 59,
    "ic_convnext_tiny": 0,
    "ic_vgg16_bn": 13,
    "ic_seresnet50": 53,
    "ic_resnext50_32x4d": 53,
}


# With random norms these amplify float32's rounding, basic or deployed alike, by 10 to 10,000 more than the others: the
# first is held to more, those with gates (on random statistics) to a milder test of their own in float32.
ROUNDING = {"ic_mobilenetv2_100": 2e-4, "ic_efficientnet_b0": None, "ic_seresnet50": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folded"), [*FAST.items(), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW.items())]
)
def test_networks_are_exact(name, folded):
    model, x = random_network(name)
    units = [n for n, m in model.named_modules() if isinstance(m, IC_LAYERS)]
    double, single = copy.deepcopy(model).double(), ROUNDING.get(name, 1e-5)
    with torch.no_grad():
        expected = double(x.double())
    report = fuse_(double, x.double())
    with torch.no_grad():
        error = (double(x.double()) - expected).abs().max() / expected.abs().max()
    assert report.fused == units
    assert len(report.folded) == folded
    assert error <= report.max_relative_error < 1e-9
    assert not any(isinstance(m, IC_LAYERS) for m in double.modules())
    assert f"fused {len(units)} IC units, folded {folded} batch norms" in str(report)
    if single is not None:
        report = fuse_(model, x)
        with torch.no_grad():
            error = (model(x) - expected).abs().max() / expected.abs().max()
        assert report.max_relative_error < single
        assert error < single


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, limit in ROUNDING.items() if limit is None])
def test_gated_networks_in_float32(name):
    model = icnets.create_model(name, num_classes=10).eval()
    for i, m in enumerate(model.modules()):
        if isinstance(m, IC_LAYERS):
            m.collision_weight = torch.randn(m.weight.shape[0], generator=torch.Generator().manual_seed(i)) * 0.02
        elif is_norm(m):
            with torch.no_grad():
                m.running_var.uniform_(0.5, 2)
                m.running_mean.normal_(0, 0.1)
                m.weight.mul_(torch.randn_like(m.weight).sign())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        rounding = (model(x) - exact).abs().max() / exact.abs().max()
        fuse_(model, x)
        error = (model(x) - exact).abs().max() / exact.abs().max()
    # Gates amplify rounding, by more or less with the draw: the yardstick is what float32 does before fusing.
    assert error < max(1e-5, 10 * rounding)


def test_the_networks_are_registered():
    from icnets.timm_models import NETWORKS  # the others are fused by benchmarks/coverage

    assert {*FAST, *SLOW} <= {*NETWORKS}


def test_basic_networks_fold_too():
    model, x = timm.create_model("resnet18", num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    for i, m in enumerate(model.modules()):
        if is_norm(m):
            random_norm(m, i)
    expected = model(x)
    report = fuse_(model, x)
    assert len(report.folded) == 20
    assert report.fused == []
    assert report.max_relative_error < 1e-5
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_input_size_is_the_models_own():
    model = icnets.create_model("resnet18", num_classes=5).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    model.default_cfg = model.pretrained_cfg
    assert fuse_(model).max_relative_error < 1e-5
