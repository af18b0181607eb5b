"""Layers whose forward pass or weight is a subclass's own: deployed right for other inputs too, in every form."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import strategies
from deploy.fuse.networks import random_norm, relative_error
from icnets import ICConfig, ICConv2d, convert_, fuse_
from icnets.deploy.export.lowering import lower_
from icnets.unit.deployed import FusedICConv2d, deploy_
from icnets.unit.layers import IC_LAYERS


class Same(nn.Conv2d):
    """Pads by its input's size, with arithmetic of Python's."""

    def forward(self, x):
        over = [max((math.ceil(n / s) - 1) * s + 3 - n, 0) for n, s in zip(x.shape[-2:], self.stride, strict=True)]
        x = F.pad(x, [over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Static(nn.Conv2d):
    """Pads to one side by a module of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return super().forward(self.pad(x))


class Reflect(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 2, 2, 1), mode="reflect"))


class Passed(nn.Conv2d):
    """Hands a padding to the convolution that depends on the input's size."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=x.shape[-1] % 2 + 1)


class Attenuated(nn.Conv2d):
    def forward(self, x):
        return super().forward(0.5 * x)


class Rounded(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, torch.round(weight * 8) / 8, 2 * bias)


class Fixed(nn.Conv2d):
    """Its attributes aren't what it convolves with."""

    def forward(self, x):
        return F.conv2d(x, self.weight, None, stride=2, padding="valid", groups=self.groups)


class Standardised(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(F.pad(x, (0, 1, 2, 0)), weight * self.gain, self.bias)


class Tagged(nn.Conv2d):
    """Has more than torch's layer, but nothing that its forward pass needs."""

    gain = "of an antenna"

    def area(self):
        return math.prod(self.kernel_size)


MAKE = {
    "same": lambda: Same(4, 6, 3, 2),
    "same, grouped": lambda: Same(4, 6, 3, groups=2, bias=False),
    "static": lambda: Static(4, 6, 3, 2),
    "reflect": lambda: Reflect(4, 6, 3, bias=False),
    "passed": lambda: Passed(4, 6, 3),
    "attenuated": lambda: Attenuated(4, 6, 3),
    "rounded": lambda: Rounded(4, 6, 3, padding="same", groups=2),
    "rounded, reflect": lambda: Rounded(4, 6, 3, padding=1, padding_mode="reflect"),
    "fixed": lambda: Fixed(4, 6, 3, padding=1, bias=False),
    "standardised": lambda: Standardised(4, 6, 3, 2),
    "tagged": lambda: Tagged(4, 6, 3, padding=1),
    "timm same": lambda: timm.layers.Conv2dSame(4, 6, 3, 2, groups=2),
    "timm std": lambda: timm.layers.StdConv2d(4, 6, 3),
    "timm scaled": lambda: timm.layers.ScaledStdConv2d(4, 6, 3, 2),
    "timm scaled same": lambda: timm.layers.ScaledStdConv2dSame(4, 6, 3, 2),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3, groups=2)),
    "bias": lambda: parametrize.register_parametrization(nn.Conv2d(4, 6, 3), "bias", nn.Tanh()),
    "spectral norm, standardised": lambda: parametrizations.spectral_norm(Standardised(4, 6, 3)),
}
PADS = {"same", "same, grouped", "static", "reflect", "passed", "attenuated", "rounded, reflect", "standardised"}
PADS |= {"timm same", "timm scaled same", "spectral norm, standardised"}
SIZES = ((2, 9, 11), (1, 12, 8), (3, 16, 16))


def network(kind, warm_start):
    """The layer with a norm behind it, a unit or (with None) basic, in double precision."""
    model = nn.Sequential(MAKE[kind](), random_norm(nn.BatchNorm2d(6))).eval()
    if warm_start is not None:
        assert convert_(model, ICConfig(warm_start=warm_start)).converted == ["0"]
        strategies.randomise(model[0], 1)
    return model.double()


@pytest.mark.parametrize("warm_start", [None, "none", "gain"])
@pytest.mark.parametrize("kind", MAKE)
def test_exact_for_every_size_of_input(kind, warm_start):
    model = network(kind, warm_start)
    inputs = [torch.randn(n, 4, *size, dtype=torch.float64) for n, *size in SIZES]
    expected = [model(x) for x in inputs]
    report = fuse_(model, inputs[0])
    assert report.skipped == {}
    assert report.folded == {"1": "0"}
    assert report.fused == ([] if warm_start is None else ["0"])
    assert not isinstance(model[0], IC_LAYERS)
    assert not parametrize.is_parametrized(model[0])
    assert all(p.requires_grad is False for n, p in model[0].named_parameters() if n in ("weight", "bias"))
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for x, y in zip(inputs, expected, strict=True):
            assert relative_error(twin(x), y) < 1e-12


@pytest.mark.parametrize("kind", MAKE)
def test_a_weight_that_is_computed_once_takes_no_forward_pass(kind):
    model = network(kind, "gain")
    fuse_(model, torch.randn(2, 4, 9, 11, dtype=torch.float64))
    assert isinstance(model[0], FusedICConv2d)
    assert getattr(model[0], "_options", (False,))[0] == (kind in PADS)


@pytest.mark.parametrize("kind", ["same", "rounded", "timm std", "timm scaled same", "spectral norm"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_called_and_traced_as_the_former_layer_was(kind):
    model = network(kind, "gain").float()
    x = torch.randn(2, 4, 9, 11)
    expected = model(x)
    fuse_(model, x)
    name = "input" if "norm" in kind or kind == "rounded" else "x"
    for y in (torch.jit.trace(model, x)(x), model[0](**{name: x}), model.to(memory_format=torch.channels_last)(x)):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[0](x[1]), expected[1], rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(x).float(), expected) < 0.05


@pytest.mark.parametrize("nd", [1, 3])
@pytest.mark.parametrize("ic", [False, True])
def test_other_dimensions(nd, ic):
    kind, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[nd]

    class Causal(kind):
        def forward(self, x):
            return super().forward(F.pad(x, [2, 0] * nd))

    model = nn.Sequential(Causal(4, 6, 3), random_norm(norm(6))).eval()
    if ic:
        convert_(model)
        strategies.randomise(model[0], 0)
    model.double()
    x = torch.randn(2, 4, *[5] * nd, dtype=torch.float64)
    expected = model(x)
    assert fuse_(model, x).folded == {"1": "0"}
    assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize("kind", ["same", "reflect", "passed", "rounded", "timm scaled same", "spectral norm"])
def test_exported_compiled_and_lowered(kind):
    model = network(kind, "gain").float()
    x = torch.randn(2, 4, 9, 11)
    expected = model(x)
    fuse_(model, x)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    for scaled in (False, True):
        lowered = lower_(copy.deepcopy(model), scaled)
        torch.testing.assert_close(lowered(x), expected, rtol=1e-4, atol=1e-4)


def test_a_silent_branch_gives_the_basic_layer_back():
    for kind, basic in (("same", Same), ("static", Static), ("weight norm", nn.Conv2d), ("tagged", Tagged)):
        model = nn.Sequential(MAKE[kind]()).eval()
        convert_(model, ICConfig(warm_start="gain"))
        fuse_(model, torch.randn(1, 4, 9, 9))
        assert type(model[0]) is basic


def test_methods_of_a_subclass_stay():
    model = network("tagged", "gain")
    fuse_(model, torch.randn(1, 4, 9, 9).double())
    assert isinstance(model[0], Tagged)
    assert model[0].area() == 9
    assert model[0].gain == "of an antenna"


class Dynamic(nn.Conv2d):
    """Its weight depends on its input."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class After(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class Twice(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight) + F.conv2d(x, self.weight)


class Striped(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight[:, :, :1], self.bias)


class Signed(nn.Conv2d):
    """An attribute is called as one of the deployed layer's."""

    sign = -1


class Unit(ICConv2d):
    """Somebody's own subclass of a unit."""

    def forward(self, x):
        return super().forward(x) ** 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Dynamic(4, 6, 3), "another weight or bias at each call"),
        (lambda: After(4, 6, 3), "After changes the convolution's output"),
        (lambda: Twice(4, 6, 3), "calls torch's convolution 2 times"),
        (lambda: Striped(4, 6, 3), "a weight of shape (6, 4, 1, 3)"),
        (lambda: Signed(4, 6, 3), "attributes of its own that a deployed unit has too (sign)"),
        (lambda: prune.l1_unstructured(nn.Conv2d(4, 6, 3), "bias", 0.5), "its bias is computed before each call"),
        (lambda: Unit(4, 6, 3), "Unit has behaviour of its own"),
    ],
)
def test_what_stays_says_why_and_so_does_its_norm(make, reason):
    for convert in (False, True):
        model = nn.Sequential(make(), random_norm(nn.BatchNorm2d(6))).eval()
        if convert and not convert_(model).converted:
            continue
        x = torch.randn(2, 4, 9, 9)
        expected = model(x)
        report = fuse_(model, x)
        assert reason in report.skipped["1"]
        assert report.skipped["1"].startswith("the layer before it can't take it: ")
        assert report.folded == {}
        assert report.fused == []
        assert isinstance(model[1], nn.BatchNorm2d)
        assert torch.equal(model(x), expected)
        if isinstance(model[0], IC_LAYERS):
            assert reason in report.skipped["0"]
            with pytest.raises(TypeError, match="can't be deployed"):
                deploy_(model[0])
