"""What fuse_ refuses, and that the model is then as it was."""

import copy

import pytest
import torch
from torch import nn

from deploy.fuse.networks import random_norm, small
from icnets import ICConv2d
from icnets.deploy.fuse import FuseReport, fuse_


def test_training_mode_is_refused():
    model, x = small()
    state = copy.deepcopy(model.state_dict())
    for module in (model, model[0], model[1]):
        module.train()
        with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
            fuse_(model, x)
        model.eval()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "fuse its .module first"),
        (torch.compile, "fuse it first, then compile it"),
        (torch.fx.symbolic_trace, "traced graph.*fuse the nn.Module"),
        (lambda m: "resnet", "str; fuse an nn.Module"),
    ],
)
def test_wrapped_models_are_refused(wrap, message):
    model, x = small()
    with pytest.raises(TypeError, match=message):
        fuse_(wrap(model), x)


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(ICConv2d(3, 4, 3)).eval()
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=r"0.weight is on the meta device.*load the model's weights"):
            fuse_(model, torch.randn(1, 3, 8, 8, device=device))


def test_the_example_is_needed_and_must_fit():
    model, x = small()
    with pytest.raises(ValueError, match="names no input size; pass a batch"):
        fuse_(model)
    with pytest.raises(ValueError, match=r"example input of shape \(1, 3, 5, 5\)"):
        fuse_(model, torch.randn(1, 3, 5, 5))
    with pytest.raises(ValueError, match="the model fails on an example input"):
        fuse_(model, 3)
    assert isinstance(model[0], ICConv2d)
    assert isinstance(fuse_(model, (x,)), FuseReport)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_an_error_too_large_leaves_the_model_as_it_was():
    model, x = small()
    model.append(Noisy())
    model[0].register_forward_hook(lambda m, a, out: None)
    before = {n: (type(m), dict(m._parameters), dict(m._buffers)) for n, m in model.named_modules()}
    with pytest.raises(RuntimeError, match=r"differ by .* left as it was"):
        fuse_(model, x)
    after = {n: (type(m), dict(m._parameters), dict(m._buffers)) for n, m in model.named_modules()}
    assert after.keys() == before.keys()
    for name, (kind, parameters, buffers) in before.items():
        assert after[name][0] is kind
        assert all(after[name][1][k] is p for k, p in parameters.items())
        assert all(after[name][2][k] is b for k, b in buffers.items())
    model[-1] = nn.Identity()
    assert len(fuse_(model, x).fused) == 3


class Switch(nn.Module):
    """Reads the convolution twice, but not on the example's sign."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = ICConv2d(1, 1, 1), random_norm(nn.BatchNorm2d(1), zeros=False)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) if x.min() >= 0 else self.bn(y) + y


def test_a_forward_pass_that_depends_on_values_is_caught():
    model = Switch().eval()
    with pytest.raises(RuntimeError, match="depend on values"):
        fuse_(model, torch.rand(1, 1, 4, 4))
    assert isinstance(model.conv, ICConv2d)
    assert isinstance(model.bn, nn.BatchNorm2d)
