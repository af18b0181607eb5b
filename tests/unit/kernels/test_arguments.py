"""What torch's layers take, IC layers take on every path, and what torch's refuse they refuse in torch's words."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reference
from icnets import ICConfig, ICConv1d, ICConv2d, ICConv3d, ICConvTranspose2d, ICLinear, convert_
from icnets.unit import functional
from icnets.unit.deployed import deploy_
from icnets.unit.layers import unit_of
from strategies import randomise

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel", "ignore:Initializing zero-element tensors is a no-op"
)
F64 = {"dtype": torch.float64}
FUNCTIONS = {1: functional.ic_conv1d, 2: functional.ic_conv2d, 3: functional.ic_conv3d}


def unit_from(basic, **options):
    """A unit beside the layer, which shares its parameters."""
    unit = unit_of(basic).take_over_(copy.deepcopy(basic), **options)
    for name, parameter in basic._parameters.items():
        unit._parameters[name] = parameter
    return unit


def silent(basic):
    """One of the same function."""
    return unit_from(basic, gain=0.0)


class PadsFirst(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x):
        return self._conv_forward(F.pad(x, [1, 0, 0, 1]), self.weight, self.bias)


# -- one value for all dimensions ------------------------------------------------------------------------------------

ONE_VALUE = [
    (ICConv2d, {"padding": (1,)}),
    (ICConv2d, {"stride": (2,)}),
    (ICConv2d, {"dilation": (2,)}),
    (ICConv2d, {"stride": (2,), "padding": (2,), "dilation": (2,), "groups": 2}),
    (ICConv2d, {"padding": "same", "dilation": (2,)}),
    (ICConv2d, {"padding": [1], "stride": [2]}),
    (ICConv2d, {"kernel_size": 1, "stride": (2,)}),
    (ICConv1d, {"padding": (1,), "stride": (2,)}),
    (ICConv3d, {"padding": (1,), "stride": (2,), "groups": 4}),
    (ICConv3d, {"padding": "same", "dilation": (2,), "kernel_size": 2}),
    (ICConvTranspose2d, {"padding": (1,), "stride": (2,), "output_padding": (1,)}),
    (ICConvTranspose2d, {"dilation": (2,), "stride": (3,), "groups": 2}),
]


def pair(cls, options):
    """A layer with one value for all dimensions, one with a value for each, and an input."""
    nd = len(cls(1, 1, 1).kernel_size)
    options = {"kernel_size": 3, **options}
    each = {k: tuple(v) * nd if isinstance(v, tuple | list) else v for k, v in options.items()}
    one = randomise(cls(4, 4, **options, **F64), 1)
    other = randomise(cls(4, 4, **each, **F64), 1)
    return one, other, torch.randn(2, 4, *[7, 6, 5][:nd], dtype=torch.float64)


def reference_of(layer, x):
    if isinstance(layer, ICConvTranspose2d):
        basic = copy.deepcopy(layer).give_back_()
        ones = torch.ones(layer.in_channels, layer.groups // layer.groups, *layer.kernel_size, **F64)
        conv = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        s = F.conv_transpose2d(x, ones, None, *conv).repeat_interleave(layer.out_channels // layer.groups, 1)
        y, w = basic(x), layer.collision_weight.view(-1, 1, 1)
        return y + (y - layer.bias.view(-1, 1, 1) - w * s + layer.inner_bias.view(-1, 1, 1)).relu()
    return reference.ic_conv(layer, x, layer.collision_weight)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("cls", "options"), ONE_VALUE)
def test_one_value_stands_for_all_dimensions(cls, options, train):
    one, other, x = pair(cls, options)
    x.requires_grad_()
    found = []
    for layer in (one, other):
        with torch.set_grad_enabled(train):
            z = layer(x)
        found.append((z, *(torch.autograd.grad(z.square().sum(), [x, *layer.parameters()]) if train else ())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][0], reference_of(other, x.detach()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(silent(one.give_back_())(x), other.give_back_()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of Python's decisions by sizes
@pytest.mark.parametrize(("cls", "options"), ONE_VALUE)
def test_one_value_on_the_other_paths(cls, options):
    one, other, x = pair(cls, options)
    expected = other.eval()(x)
    one = one.eval()
    ways = [lambda m: torch.export.export(m, (x,)).module(), lambda m: torch.jit.trace(m, x)]
    ways += [] if isinstance(one, ICConvTranspose2d) else [torch.fx.symbolic_trace]  # which can't trace torch's either
    for way in ways:
        torch.testing.assert_close(way(one)(x), expected, rtol=1e-12, atol=1e-12)
    if isinstance(one, ICConvTranspose2d):
        return
    nd = len(one.kernel_size)
    arguments = (x, one.weight, one.collision_weight, one.bias, one.stride, one.padding, one.dilation, one.groups)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            z = FUNCTIONS[nd](*arguments, inner_bias=one.inner_bias)
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    deploy_(one)
    exported = torch.export.export(one, (x,)).module()
    with torch.no_grad():
        for fused in (one, exported):
            torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one(x.requires_grad_()), expected, rtol=1e-10, atol=1e-10)


def test_one_value_in_a_subclass_that_pads_first():
    one, each = (PadsFirst(4, 4, 3, stride=s, dilation=s, **F64) for s in ((2,), (2, 2)))
    each.load_state_dict(one.state_dict())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    found = []
    for conv in (one, each):
        network = nn.Sequential(conv)
        convert_(network, ICConfig(), optimizers=())
        found.append(randomise(network, 2)(x))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", [{"dilation": (3, 3)}, {"dilation": 2}, {"stride": 1, "padding": "valid"}])
def test_windows_changed_after_construction_are_followed(change):
    layer = randomise(ICConv2d(2, 4, 3, padding="same", groups=2, **F64), 1)
    vars(layer).update(change)
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    twin.dilation = (change["dilation"],) * 2 if change.get("dilation") == 2 else layer.dilation
    twin.stride = (1, 1)
    expected = reference.ic_conv(twin, x, layer.collision_weight)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


# -- what torch refuses ----------------------------------------------------------------------------------------------

REFUSED = [
    ("smaller than the window", nn.Conv2d, (1, 1, 3), {}, (3, 1, 2, 2)),
    ("smaller in one dimension", nn.Conv2d, (2, 2, 3), {"padding": (1, 0)}, (1, 2, 5, 2)),
    ("smaller than the dilated window", nn.Conv2d, (2, 2, 3), {"dilation": 3}, (1, 2, 6, 9)),
    ("smaller, 1-D", nn.Conv1d, (2, 2, 5), {}, (1, 2, 4)),
    ("smaller, 3-D", nn.Conv3d, (2, 2, 2), {}, (1, 2, 4, 1, 4)),
    ("fewer channels than groups", nn.Conv2d, (8, 8, 3), {"groups": 4}, (3, 2, 7, 7)),
    ("one channel, depthwise", nn.Conv2d, (8, 8, 3), {"groups": 8}, (3, 1, 7, 7)),
    ("more channels", nn.Conv2d, (2, 2, 3), {}, (1, 4, 5, 5)),
    ("channels that groups don't divide", nn.Conv2d, (4, 4, 3), {"groups": 2}, (1, 5, 5, 5)),
    ("channels of 1x1", nn.Conv2d, (4, 4, 1), {"groups": 2}, (1, 6, 5, 5)),
    ("stride 0", nn.Conv2d, (1, 1, 3), {"stride": 0}, (1, 1, 5, 5)),
    ("stride 0 of 1x1", nn.Conv2d, (1, 1, 1), {"stride": (0, 1)}, (1, 1, 5, 5)),
    ("negative stride", nn.Conv2d, (1, 1, 3), {"stride": -1}, (1, 1, 5, 5)),
    ("negative padding", nn.Conv2d, (1, 1, 3), {"padding": (-1, 0)}, (1, 1, 5, 5)),
    ("dilation 0", nn.Conv2d, (1, 1, 3), {"dilation": 0}, (1, 1, 5, 5)),
    ("three strides", nn.Conv2d, (1, 1, 3), {"stride": (1, 1, 1)}, (1, 1, 5, 5)),
    ("no padding at all", nn.Conv2d, (1, 1, 3), {"padding": ()}, (1, 1, 5, 5)),
    ("three dilations", nn.Conv2d, (1, 1, 1), {"dilation": (1, 1, 1)}, (1, 1, 5, 5)),
    ("five dimensions", nn.Conv2d, (1, 1, 1), {}, (1, 1, 5, 5, 5)),
    ("two dimensions", nn.Conv2d, (1, 1, 1), {}, (5, 5)),
    ("no places", nn.Conv2d, (1, 1, 3), {}, (2, 1, 0, 5)),
    ("reflection wider than the image", nn.Conv2d, (1, 1, 3), {"padding": 4, "padding_mode": "reflect"}, (1, 1, 3, 3)),
    ("too few inputs", nn.Linear, (4, 3), {}, (2, 3)),
    ("transposed, other channels", nn.ConvTranspose2d, (4, 4, 3), {"groups": 2}, (1, 2, 3, 3)),
    ("transposed, no output left", nn.ConvTranspose2d, (1, 1, 1), {"padding": 2}, (1, 1, 2, 2)),
]


def what_is_said(call):
    with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
        call()
    return type(caught.value), str(caught.value)


def convolution(module):
    """Its call as a function, from its layer's attributes, without parameters that ask for gradients."""
    return (module.stride, module.padding, module.dilation, module.groups)


@pytest.mark.parametrize(("make", "args", "options", "shape"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_torch_refuses_is_refused_in_its_words(make, args, options, shape):
    basic, x = make(*args, **options), torch.randn(shape)
    expected = what_is_said(lambda: basic(x))
    layer = unit_from(copy.deepcopy(basic))
    with torch.no_grad():
        assert what_is_said(lambda: layer(x)) == expected
    assert what_is_said(lambda: layer(x)) == expected
    assert what_is_said(lambda: layer(x.clone().requires_grad_())) == expected
    if make in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and basic.padding_mode == "zeros":
        nd = len(basic.kernel_size)
        function, torchs = FUNCTIONS[nd], getattr(F, f"conv{nd}d")
        vector, conv = torch.zeros(basic.out_channels), convolution(basic)
        expected_of_it = what_is_said(lambda: torchs(x, basic.weight, basic.bias, *conv))
        for weight in (basic.weight, basic.weight.detach()):
            assert what_is_said(lambda w=weight: function(x, w, vector, basic.bias, *conv)) == expected_of_it
    if make not in (nn.ConvTranspose2d,):
        deploy_(randomise(layer, 1).eval())
        with torch.no_grad():
            assert what_is_said(lambda: layer(x)) == expected


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same", "stride": 2},
        {"padding": "same", "stride": (1, 2)},
        {"groups": 0},
        {"groups": -2},
        {"stride": (2, 2, 2)},
        {"dilation": ()},
        {"padding": 2**62},
        {"dilation": 2**62},
        {"dilation": 2**40},
    ],
)
def test_arguments_that_only_the_functional_form_takes(arguments, grad):
    x, weight, w = torch.randn(1, 2, 5, 5), torch.randn(4, 2, 3, 3, requires_grad=grad), torch.zeros(4)
    expected = what_is_said(lambda: F.conv2d(x, weight, **arguments))
    assert what_is_said(lambda: functional.ic_conv2d(x, weight, w, **arguments)) == expected


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, torch.int64, torch.complex64])
@pytest.mark.parametrize("which", ["input", "weight", "bias"])
def test_mixed_types_are_refused_in_torchs_words(which, other, grad):
    x, conv = torch.randn(1, 2, 5, 5), nn.Conv2d(2, 4, 3)
    if which == "input":
        x = x.to(other)
    elif other.is_floating_point or not grad:
        setattr(
            conv, which, nn.Parameter(getattr(conv, which).detach().to(other), requires_grad=other.is_floating_point)
        )
    else:
        pytest.skip("only numbers with a gradient train")
    if conv.weight.is_complex():
        pytest.skip("a complex weight makes no unit")
    layer = unit_from(conv)
    with torch.set_grad_enabled(grad):
        assert what_is_said(lambda: layer(x)) == what_is_said(lambda: conv(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("vector", [torch.zeros(3), torch.zeros(5), torch.zeros(0), torch.zeros(4, 2)])
def test_vectors_of_another_length_are_refused(vector, grad):
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(4, 2, 3, 3, requires_grad=grad)
    calls = [
        partial(functional.ic_conv2d, x, weight, vector),
        partial(functional.ic_conv2d, x, weight, torch.zeros(4), inner_bias=vector),
        partial(functional.ic_conv2d, x, weight, torch.zeros(4), gain=vector),
    ]
    for call in calls:
        what_is_said(call)


def test_a_network_whose_maps_get_smaller_than_a_window():
    import timm

    basic = timm.create_model("inception_v3").eval()
    x = torch.randn(1, 3, 58, 58)
    with torch.no_grad():
        expected = what_is_said(lambda: basic(x))
        convert_(basic, ICConfig(warm_start="gain"), optimizers=())
        assert what_is_said(lambda: basic(x)) == expected
    assert what_is_said(lambda: basic(x)) == expected


# -- nothing to compute ----------------------------------------------------------------------------------------------

EMPTY = [
    ("no example", nn.Conv2d, (2, 4, 3), {"groups": 2}, (0, 2, 5, 5)),
    ("no input channel", nn.Conv2d, (0, 4, 3), {}, (2, 0, 5, 5)),
    ("no input channel, 1-D", nn.Conv1d, (0, 8, 2), {"stride": 2}, (4, 0, 15)),
    ("no input channel, 3-D", nn.Conv3d, (0, 3, 2), {}, (4, 0, 5, 6, 7)),
    ("no input channel, 1x1", nn.Conv2d, (0, 4, 1), {}, (2, 0, 5, 5)),
    ("no input channel, but some", nn.Conv2d, (0, 4, 3), {}, (2, 2, 5, 5)),
    ("no output channel", nn.Conv2d, (3, 0, 3), {}, (2, 3, 5, 5)),
    ("no place, padded", nn.Conv2d, (2, 4, 3), {"padding": 2}, (2, 2, 0, 5)),
    ("no place, unpadded", nn.Conv2d, (2, 4, 1), {}, (2, 2, 0, 5)),
    ("unbatched", nn.Conv2d, (2, 4, 3), {}, (2, 5, 5)),
    ("unbatched, no channel", nn.Conv2d, (0, 4, 3), {}, (0, 5, 5)),
    ("a linear layer of no inputs", nn.Linear, (0, 3), {}, (2, 0)),
    ("a linear layer of no outputs", nn.Linear, (3, 0), {}, (2, 3)),
    ("a linear layer of no examples", nn.Linear, (3, 2), {}, (4, 0, 3)),
    ("transposed, no example", nn.ConvTranspose2d, (2, 4, 3), {"stride": 2}, (0, 2, 5, 5)),
    ("transposed, no input channel", nn.ConvTranspose2d, (0, 4, 3), {}, (2, 0, 5, 5)),
]


@pytest.mark.parametrize(("make", "args", "options", "shape"), [r[1:] for r in EMPTY], ids=[r[0] for r in EMPTY])
def test_nothing_to_compute(make, args, options, shape):
    basic, x = make(*args, **options, **F64), torch.randn(shape, dtype=torch.float64)

    def outcome(layer, x, train):
        x = x.clone().requires_grad_(train)
        try:
            with torch.set_grad_enabled(train):
                z = layer(x)
            inputs = [x, layer.weight, layer.bias]
            return z, *(torch.autograd.grad(z.sum(), inputs, allow_unused=True) if train else ())
        except Exception as error:  # which torch's own layer must raise too
            return type(error), str(error)

    layer = silent(copy.deepcopy(basic))
    for train in (True, False):
        found, expected = outcome(layer, x, train), outcome(basic, x, train)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            if isinstance(b, torch.Tensor):
                torch.testing.assert_close(a, b)
            elif b is None:
                assert a is None or not a.any()
            else:
                assert a == b
    if not isinstance(expected[0], torch.Tensor):
        return
    z = layer(x)
    assert all(g is not None and not g.any() for g in torch.autograd.grad((z * 0).sum(), list(layer.parameters())))
    awake = randomise(unit_from(basic), 1).eval()
    z = awake(x)
    if make is not nn.ConvTranspose2d and awake.weight.numel():
        deploy_(awake)
        with torch.no_grad():
            torch.testing.assert_close(awake(x), z)


# -- oneDNN's layout -------------------------------------------------------------------------------------------------

PACKED = [
    (lambda: ICConv2d(4, 6, 3, padding=1, groups=2), (2, 4, 6, 6)),
    (lambda: ICConv2d(4, 6, 1, gain=0.5), (2, 4, 6, 6)),
    (lambda: ICConv2d(4, 4, 3, padding=(1,), groups=4), (2, 4, 6, 6)),
    (lambda: ICConv3d(2, 4, 3), (1, 2, 4, 4, 4)),
    (lambda: ICLinear(5, 4), (2, 5)),
]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("make", "shape"), PACKED)
def test_onednns_layout(make, shape):
    layer, x = randomise(make(), 1), torch.randn(shape)
    expected = layer(x)
    packed = x.to_mkldnn()
    assert basic_twin(layer)(packed).is_mkldnn
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            z = layer(packed)
        assert z.is_mkldnn
        torch.testing.assert_close(z.to_dense(), expected)
    deploy_(layer.eval())
    with torch.no_grad():
        z = layer(packed)
        assert z.is_mkldnn
        torch.testing.assert_close(z.to_dense(), expected, rtol=1e-4, atol=1e-5)


def basic_twin(layer):
    """torch's own layer with the same weights."""
    return copy.deepcopy(layer).give_back_()


def test_the_layouts_that_torch_refuses_raise():
    layer = ICConv2d(2, 4, 3)
    x = torch.randn(1, 2, 5, 5).to_sparse()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert what_is_said(lambda: layer(x)) == what_is_said(lambda: basic_twin(layer)(x))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("to", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn])
def test_layouts_of_a_linear_layer(to):
    layer, x = randomise(ICLinear(5, 4), 1), torch.randn(3, 5)
    expected = layer(x)
    torch.testing.assert_close(layer(to(x)).to_dense(), expected)
    deploy_(layer.eval())
    torch.testing.assert_close(layer(to(x)).to_dense(), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_with_the_remedy(layout):
    rows = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=layout)
    with pytest.raises(NotImplementedError, match="an IC layer takes no nested tensor; give it"):
        ICLinear(5, 4)(rows)
