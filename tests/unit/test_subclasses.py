"""Units made of subclasses with behaviour of their own; the folder awkward has the outcomes, this the numbers."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import reference
from icnets import ICConfig, ICConv2d, convert_, load, revert_, save
from strategies import randomise


class Standardised(nn.Conv2d):
    """Pads to one side and standardises its weight; its parameter ``gain`` is called as one of the unit's."""

    def __init__(self, **kwargs):
        super().__init__(4, 6, 3, 2, groups=2, **kwargs)
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1, **kwargs))

    def standardised(self):
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
        return flat.view_as(self.weight) * self.gain

    def forward(self, x):
        return self._conv_forward(F.pad(x, (0, 1, 2, 0)), self.standardised(), self.bias)


def unit(warm_start="none", dtype=torch.float64):
    layer = Standardised(dtype=dtype)
    assert convert_(layer, ICConfig(warm_start=warm_start)).converted == [""]
    return randomise(layer, 1)


def as_reference(layer, x):
    """A plain unit of the computed weight over the padded input, by the paper's formula."""
    plain = ICConv2d(4, 6, 3, 2, groups=2, gain=1.0, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(layer.standardised())
        plain.bias.copy_(layer.bias)
        plain.inner_bias.copy_(layer.ic_inner_bias)
        plain.gain.fill_(1.0 if layer.ic_gain is None else 0.0)
        if layer.ic_gain is not None:
            plain.gain.copy_(layer.ic_gain)
    return reference.ic_conv(plain, F.pad(x, (0, 1, 2, 0)), layer.collision_weight)


@pytest.mark.parametrize("warm_start", ["none", "gain"])
def test_equals_the_reference(warm_start):
    layer, x = unit(warm_start), torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), as_reference(layer, x), rtol=1e-10, atol=1e-10)
    assert [n for n, _ in layer.named_parameters()][-2:] != ["collision", "inner_bias"]
    assert layer.gain.shape == (6, 1, 1, 1)


def test_gradcheck():
    layer, x = unit("gain"), torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    names, params = zip(*layer.named_parameters(), strict=True)
    assert "ic_gain" in names

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *params))


def test_compile_export_and_fx_equal_eager():
    layer, x = unit(dtype=torch.float32).eval(), torch.randn(2, 4, 7, 8)
    exported = torch.export.export(layer, (x,)).module()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for other in (exported, compiled, torch.fx.symbolic_trace(nn.Sequential(layer))):
        torch.testing.assert_close(other(x), layer(x))


class Same(nn.Conv2d):
    """Pads as TensorFlow does, by its input's size."""

    def forward(self, x):
        over = (x.size(-1) - 1) % self.stride[1] + 1
        return F.conv2d(F.pad(x, [0, self.kernel_size[1] - over]), self.weight, self.bias, self.stride)


class Python(nn.Conv2d):
    def forward(self, x):
        over = math.ceil(x.shape[-1] / 3)
        return F.conv2d(F.pad(x, [0, over]), self.weight, self.bias, self.stride)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias * 2, self.stride)


class Attenuated(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        return F.conv2d(x * self.factor, self.weight, self.bias, self.stride)


class Named(nn.Conv2d):
    """Only an attribute is in the way of the unit's names."""

    gain = "of an antenna"


@pytest.mark.parametrize("warm_start", ["none", "gain"])
@pytest.mark.parametrize(
    "make",
    [
        Standardised,
        lambda: Same(4, 6, 3, 2),
        lambda: Python(4, 6, 3, 2),
        lambda: Scaled(4, 6, 3, 2),
        lambda: Attenuated(4, 6, 3, 2),
        lambda: Named(4, 6, 3, padding=1, padding_mode="reflect"),
        lambda: timm.layers.Conv2dSame(4, 6, 3, 2, groups=2),
        lambda: timm.layers.ScaledStdConv2dSame(4, 6, 3, 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")  # what some pads follow from the size
def test_a_trace_equals_eager_and_leaves_the_unit_a_unit(make, warm_start, tmp_path):
    model, x = nn.Sequential(make()).eval(), torch.randn(2, 4, 7, 8)
    assert convert_(model, ICConfig(warm_start=warm_start)).converted == ["0"]
    randomise(model[0], 1)
    traced = torch.jit.trace(model, x)
    torch.jit.save(traced, tmp_path / "unit.pt")
    for other in (traced, torch.jit.load(tmp_path / "unit.pt"), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), model(x))
    assert traced.state_dict().keys() == model.state_dict().keys()
    revert_(model)
    assert type(model[0]) is type(make())
    assert vars(model[0]).keys() == vars(make()).keys()


def test_copies_pickles_saves_loads_and_reverts(tmp_path):
    model, x = nn.Sequential(unit("gain")), torch.randn(2, 4, 7, 8, dtype=torch.float64)
    z = model(x)
    assert isinstance(model[0], ICConv2d)
    assert isinstance(model[0], Standardised)
    assert torch.equal(copy.deepcopy(model)(x), z)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), z)
    save(model, tmp_path / "ic.safetensors")
    assert torch.equal(load(tmp_path / "ic.safetensors", nn.Sequential(Standardised(dtype=torch.float64)))(x), z)
    revert_(model)
    assert type(model[0]) is Standardised
    assert model[0].state_dict().keys() == Standardised().state_dict().keys()


def test_calibration_sums_what_the_layer_convolves():
    layer, x = Standardised().eval(), torch.rand(16, 4, 12, 12)
    convert_(layer, ICConfig(warm_start="calibrate", calibration_rate=0.1, max_change=None), calibration_data=[x])
    with torch.no_grad():
        rates = ((layer(x) - Standardised.forward(layer, x)) > 0).float().mean((0, 2, 3))
    torch.testing.assert_close(rates, torch.full_like(rates, 0.1), atol=0.02, rtol=0)


def test_a_parametrisation_can_be_removed_from_a_unit():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    convert_(conv, ICConfig(warm_start="gain"))
    randomise(conv, 2)
    x = torch.randn(2, 3, 6, 6)
    z = conv(x)
    assert torch.equal(copy.deepcopy(conv)(x), z)
    parametrize.remove_parametrizations(conv, "weight")
    assert type(conv) is ICConv2d
    torch.testing.assert_close(conv(x), z)
    revert_(conv)
    assert type(conv) is nn.Conv2d


def test_an_own_forward_survives_the_end_of_its_parametrisation():
    conv = parametrizations.weight_norm(Standardised())
    convert_(conv)
    randomise(conv, 2)
    x = torch.randn(2, 4, 7, 8)
    z = conv(x)
    parametrize.remove_parametrizations(conv, "weight")
    torch.testing.assert_close(conv(x), z)
    revert_(conv)
    assert type(conv) is Standardised


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 4, 3), Standardised])
def test_a_unit_parametrised_later_is_reverted_with_its_parametrisation(make):
    conv, x = make(), torch.randn(2, 4, 7, 8)
    y = conv(x)
    convert_(conv)
    parametrizations.weight_norm(conv)
    revert_(conv)
    assert parametrize.is_parametrized(conv, "weight")
    torch.testing.assert_close(conv(x), y)
    parametrize.remove_parametrizations(conv, "weight")
    assert type(conv) is type(make())
    torch.testing.assert_close(conv(x), y)


def test_spectral_norm_iterates_as_often_as_in_the_basic_layer():
    basic = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval()
    model = copy.deepcopy(basic)
    convert_(model, ICConfig(warm_start="gain"))
    basic.train()
    model.train()
    x = torch.randn(2, 3, 6, 6)
    for _ in range(3):
        torch.testing.assert_close(model(x), basic(x), rtol=1e-5, atol=1e-5)


def test_the_trial_leaves_no_trace():
    class Counting(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    layer = Counting()
    state, weight = torch.get_rng_state(), layer.weight.detach().clone()
    convert_(layer)
    assert layer.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer.weight, weight)
    layer(torch.randn(1, 3, 5, 5))
    assert layer.calls == 1


def test_an_optimizer_over_a_parametrised_weight_is_extended():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    convert_(conv, optimizers=[optimizer])
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(conv.collision), id(conv.inner_bias)}
