import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import icnets
import reference
from icnets import ICConv1d, ICConv2d, ICConv3d, ICLinear
from icnets.unit import functional
from icnets.unit.deployed import deploy_
from strategies import convs, linears, randomise

# torch says so itself, of its own convolution.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

UNITS = [
    pytest.param(lambda **kw: ICConv1d(4, 6, 3, padding=1, groups=2, **kw), (2, 4, 7), id="conv1d"),
    pytest.param(lambda **kw: ICConv2d(4, 6, 3, padding=1, stride=2, **kw), (2, 4, 7, 6), id="conv2d"),
    pytest.param(lambda **kw: ICConv3d(2, 3, 2, padding="same", **kw), (2, 2, 4, 3, 5), id="conv3d"),
    pytest.param(lambda **kw: ICLinear(5, 4, **kw), (3, 2, 5), id="linear"),
    pytest.param(lambda **kw: ICConv2d(4, 4, 3, groups=4, dilation=2, gain=0.5, **kw), (2, 4, 7, 6), id="depthwise"),
]


def assert_equal_to_reference(layer, x, slow, tolerance=1e-10):
    w = (layer.collision.detach() * layer.sum_scale).requires_grad_()
    x, x_ref = x.clone().requires_grad_(), x.clone().requires_grad_()
    z, z_ref = layer(x), slow(layer, x_ref, w)
    torch.testing.assert_close(z, z_ref, rtol=tolerance, atol=tolerance)
    dz = torch.randn_like(z)
    params = {k: p for k, p in layer.named_parameters() if k != "collision"}
    got = torch.autograd.grad(z, [x, layer.collision, *params.values()], dz)
    want = torch.autograd.grad(z_ref, [x_ref, w, *params.values()], dz)
    want = [want[0], want[1] * layer.sum_scale, *want[2:]]
    for name, a, b in zip(["x", "collision", *params], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"gradient of {n}: {m}")


@settings(max_examples=300)
@given(convs())
def test_convolutions_equal_the_reference(drawn):
    assert_equal_to_reference(*drawn, reference.ic_conv)


@settings(max_examples=60)
@given(linears())
def test_linear_equals_the_reference(drawn):
    assert_equal_to_reference(*drawn, reference.ic_linear)


@settings(max_examples=60)
@given(convs())
def test_functional_equals_the_layer(drawn):
    layer, x = drawn
    if layer.padding_mode != "zeros":
        return  # like torch's own functional form, which has no padding modes
    function = {1: functional.ic_conv1d, 2: functional.ic_conv2d, 3: functional.ic_conv3d}[x.dim() - 2]
    w = layer.collision_weight
    args = (layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    z = function(x, layer.weight, w, *args, inner_bias=layer.inner_bias, gain=layer.gain)
    torch.testing.assert_close(z, layer(x), rtol=1e-12, atol=1e-12)


def test_functional_linear_equals_the_layer():
    layer, x = randomise(ICLinear(5, 4, dtype=torch.float64), 1), torch.randn(3, 5, dtype=torch.float64)
    z = functional.ic_linear(x, layer.weight, layer.collision_weight, layer.bias, inner_bias=layer.inner_bias)
    torch.testing.assert_close(z, layer(x), rtol=1e-13, atol=1e-13)


def test_functional_refuses_an_unknown_padding():
    with pytest.raises(ValueError, match="padding is 'full'; as a string it must be 'same' or 'valid'"):
        functional.ic_conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 1), torch.ones(1), padding="full")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_gradcheck_and_gradgradcheck(make, shape):
    reference.assert_gradients(randomise(make(dtype=torch.float64), 3), torch.randn(shape, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_compile_export_and_fx_equal_eager(make, shape):
    layer, x = randomise(make(), 4).eval(), torch.randn(shape)
    expected = layer(x)
    traced = torch.fx.symbolic_trace(layer)
    exported = torch.export.export(layer, (x,)).module()
    # Inductor for one of them: its compiler takes its time, and what it is given is the same for all.
    backend = "inductor" if isinstance(layer, ICConv1d) else "aot_eager"
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for other in (traced, exported, compiled):
        torch.testing.assert_close(other(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_compiled_gradients_equal_eager(make, shape):
    # In double precision: single differs by its rounding, as the order of a sum is each one's own.
    layer = randomise(make(), 5).double()
    twin = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64)
    layer(x).square().sum().backward()
    torch.compile(twin, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("make", "shape"), UNITS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of decisions by sizes
def test_traces_equal_eager(make, shape):
    layer, x = randomise(make(), 6).eval(), torch.randn(shape)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))


@pytest.mark.parametrize(("make", "shape"), UNITS)
@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_scripting_is_refused_in_one_line_wherever_the_unit_is(make, shape, deployed):
    layer = randomise(make(), 6).eval()
    layer = deploy_(layer) if deployed else layer
    for model in (layer, nn.Sequential(nn.ReLU(), nn.Sequential(layer))):
        with pytest.raises(
            NotImplementedError, match=rf"^{type(layer).__name__} can't be .* use torch\.export\.export"
        ):
            torch.jit.script(model)


@pytest.mark.parametrize("size", [5, 9])
def test_export_with_a_dynamic_batch_and_size(size):
    layer = randomise(ICConv2d(3, 4, 3, padding=1), 7)
    batch, width = torch.export.Dim("batch"), torch.export.Dim("width", min=4)
    program = torch.export.export(layer, (torch.randn(2, 3, 6, 7),), dynamic_shapes=({0: batch, 3: width},))
    x = torch.randn(size, 3, 6, size)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_torch_func(make, shape):
    layer = randomise(make(dtype=torch.float64), 8)
    x = torch.randn(4, *shape, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(b) for b in x]))
    params = dict(layer.named_parameters())

    def loss(params, b):
        return torch.func.functional_call(layer, params, (b,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    loss(params, x[1]).backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(per_sample[name][1], p.grad)


@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_empty_and_unbatched_inputs(make, shape):
    layer = randomise(make(), 9)
    x = torch.randn(shape)
    empty = layer(x[:0])
    assert empty.shape == (0, *layer(x).shape[1:])
    empty.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_last_stays_channels_last(groups, kernel):
    layer = randomise(ICConv2d(4, 8, kernel, padding=kernel // 2, groups=groups), 10)
    x = torch.randn(2, 4, 6, 5)
    expected = layer(x)
    z = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, expected)


def test_padding_changed_after_construction_is_followed():
    layer = randomise(ICConv2d(2, 3, 3, padding=1, dtype=torch.float64), 11)
    layer.dilation, layer.padding, layer.stride = (2, 2), (2, 2), (1, 1)  # as segmentation networks do
    assert_equal_to_reference(layer, torch.randn(1, 2, 6, 6, dtype=torch.float64), reference.ic_conv)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", ["sqrt", "sum", "mean"])
def test_autocast_does_not_overflow(dtype, scale):
    layer = ICConv2d(512, 32, 3, padding=1, collision_weight=1e-3, scale=scale)
    x = torch.full((1, 512, 6, 6), 1e3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        z = layer(x)
    assert z.dtype == dtype
    assert z.isfinite().all()
    (z.float().mean()).backward()
    for name, p in layer.named_parameters():
        assert p.grad.isfinite().all(), name
    exact = copy.deepcopy(layer).double()(x.detach().double())
    torch.testing.assert_close(z.double(), exact, rtol=2e-2, atol=20.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters(dtype):
    layer = ICConv2d(512, 8, 3, collision_weight=1e-3, dtype=dtype)
    z = layer(torch.full((1, 512, 4, 4), 1e3, dtype=dtype))
    assert z.dtype == dtype
    assert z.isfinite().all()


@pytest.mark.parametrize(
    ("ic", "basic", "args"),
    [
        (ICConv1d, nn.Conv1d, (3, 4, 5, 2, 1, 2, 1, False, "reflect")),
        (ICConv2d, nn.Conv2d, (4, 6, (3, 1), 1, "same", (2, 1), 2, True, "circular")),
        (ICConv3d, nn.Conv3d, (2, 2, 3, 1, (1, 0, 1), 1, 2)),
        (ICLinear, nn.Linear, (5, 3, False)),
    ],
)
def test_keeps_torchs_arguments_keys_and_initialisation(ic, basic, args):
    torch.manual_seed(1)
    a = basic(*args, device="cpu", dtype=torch.float64)
    torch.manual_seed(1)
    b = ic(*args, device="cpu", dtype=torch.float64)
    assert isinstance(b, basic)
    assert set(b.state_dict()) == set(a.state_dict()) | {"collision", "inner_bias"}
    for key, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[key], value)
    assert b.collision.dtype == torch.float64
    assert not b.collision.any()
    assert repr(a)[:-1].partition("(")[2] in repr(b)


def test_new_arguments_are_keyword_only():
    with pytest.raises(TypeError):
        ICConv2d(1, 1, 1, 1, 0, 1, 1, True, "zeros", None, None, False)
    with pytest.raises(TypeError):
        ICLinear(1, 1, True, None, None, False)


@pytest.mark.parametrize("scale", ["sqrt", "sum", "mean"])
@settings(max_examples=30)
@given(drawn=linears())
def test_collision_weight_is_the_papers(scale, drawn):
    fan_in = drawn[0].in_features
    layer = ICLinear(fan_in, 4, dtype=torch.float64, scale=scale)
    w = torch.randn(4, dtype=torch.float64)
    layer.collision_weight = w
    torch.testing.assert_close(layer.collision_weight, w, rtol=1e-15, atol=0)
    x = torch.randn(7, fan_in, dtype=torch.float64)
    y = F.linear(x, layer.weight)
    z = y + (y - w * x.sum(-1, keepdim=True)).relu() + layer.bias
    torch.testing.assert_close(layer(x), z, rtol=1e-12, atol=1e-12)


def test_collision_weight_takes_numbers_and_refuses_other_shapes():
    layer = ICConv2d(4, 8, 3, collision_weight=0.25)
    assert layer.fan_in == 36
    torch.testing.assert_close(layer.collision_weight, torch.full((8,), 0.25))
    torch.testing.assert_close(layer.collision.detach(), torch.full((8,), 0.25 * 6))
    layer.collision_weight = -1
    torch.testing.assert_close(layer.collision_weight, torch.full((8,), -1.0))
    with pytest.raises(ValueError, match=r"shape \(4,\); it must be a number or .*\[8\]"):
        layer.collision_weight = torch.zeros(4)


def test_one_neuron_solves_xor():
    neuron = ICLinear(2, 1, bias=False)
    with torch.no_grad():
        neuron.weight.fill_(-1)
        neuron.inner_bias.fill_(-3)
    neuron.collision_weight = -4
    z = neuron(torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]))
    torch.testing.assert_close(z.flatten(), torch.tensor([0.0, -1, -1, 1]))


def test_dead_start():
    layer = ICConv2d(16, 16, 3, bias=False, collision_weight=1.0)  # behind a ReLU with w' = 1 nothing fires
    x = torch.rand(2, 16, 8, 8)
    z = layer(x)
    assert torch.equal(z, F.conv2d(x, layer.weight))
    z.sum().backward()
    assert not layer.collision.grad.any()


def test_leaky_form():
    layer = randomise(ICConv2d(3, 4, 3, bias=False, inner_bias=False, dtype=torch.float64), 12)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    w = layer.collision_weight.view(-1, 1, 1)
    u = F.conv2d(x, layer.weight - w[..., None])
    s = F.conv2d(x, torch.ones(1, 3, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(layer(x), w * s + 2 * F.leaky_relu(u, 0.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_copies_pickles_and_resets(make, shape):
    layer = randomise(make(), 13)
    x = torch.randn(shape)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    layer.reset_parameters()
    assert not layer.collision.any()
    assert not layer.inner_bias.any()
    assert layer.gain is None or torch.equal(layer.gain.detach(), torch.full_like(layer.gain, 0.5))


def test_meta_device_and_skip_init():
    layer = torch.nn.utils.skip_init(ICConv2d, 3, 4, 3, inner_bias=False)
    assert layer.collision.shape == (4,)
    assert ICConv2d(3, 4, 3, device="meta")(torch.empty(1, 3, 5, 5, device="meta")).shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scale": "log"}, ValueError, "scale is 'log'; it must be 'sqrt', 'sum' or 'mean'"),
        ({"padding": "full"}, ValueError, "Invalid padding string 'full'"),
        ({"groups": 2}, ValueError, "in_channels must be divisible by groups"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        ICConv2d(3, 4, 3, **kwargs)


def test_public_names_are_importable():
    for name in icnets.__all__:
        assert getattr(icnets, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = icnets.nothing


def test_a_3d_window_may_be_larger_than_the_unpadded_input():
    # avg_pool3d refuses that, and the formula's own operators must not.
    layer, x = (
        randomise(ICConv3d(2, 3, (3, 1, 1), padding=(1, 0, 0), dtype=torch.float64), 9),
        torch.randn(1, 2, 2, 4, 4),
    )
    s = functional.receptive_field_sum(x, [3, 1, 1], [1, 1, 1], [0, 0, 0, 0, 1, 1], [1, 1, 1])
    torch.testing.assert_close(s, x.sum((1, 2), keepdim=True).expand(-1, -1, 2, -1, -1))
    x = x.double()
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), reference.ic_conv(layer, x, layer.collision_weight))
