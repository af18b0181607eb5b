import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from icnets import (
    ICConfig,
    ICConvTranspose1d,
    ICConvTranspose2d,
    ICConvTranspose3d,
    convert_,
    fuse_,
    load,
    revert_,
    save,
)
from icnets.unit.deployed import deploy_
from icnets.unit.receptive_field import transposed_sum
from reference import assert_gradients
from strategies import COLLISIONS, randomise

TRANSPOSED = {1: ICConvTranspose1d, 2: ICConvTranspose2d, 3: ICConvTranspose3d}
UNITS = [
    pytest.param(lambda **kw: ICConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2, **kw), (1, 4, 3), id="1d"),
    pytest.param(lambda **kw: ICConvTranspose2d(2, 3, 2, 2, gain=0.5, **kw), (1, 2, 2, 3), id="2d"),
    pytest.param(lambda **kw: ICConvTranspose3d(2, 3, 2, (1, 2, 1), dilation=2, **kw), (1, 2, 2, 3, 2), id="3d"),
]


def reference(layer, x, w_prime, output_size):
    """The unit one contribution at a time: each input place sends its value to the places that its kernel reaches."""
    g, nd = layer.groups, len(layer.kernel_size)
    per_in, per_out = layer.in_channels // g, layer.out_channels // g
    y = x.new_zeros(len(x), layer.out_channels, *output_size)
    s = x.new_zeros(len(x), g, *output_size)
    places = itertools.product(*(range(n) for n in x.shape[2:]))
    for place, tap in itertools.product(list(places), itertools.product(*(range(k) for k in layer.kernel_size))):
        to = [place[i] * layer.stride[i] - layer.padding[i] + tap[i] * layer.dilation[i] for i in range(nd)]
        if any(t < 0 or t >= n for t, n in zip(to, output_size, strict=True)):
            continue
        there, here = (slice(None), slice(None), *to), (slice(None), slice(None), *place)
        values = x[here].unflatten(1, (g, per_in))
        weight = layer.weight[(..., *tap)].unflatten(0, (g, per_in))
        y_there, s_there = torch.zeros_like(y), torch.zeros_like(s)
        y_there[there] = torch.einsum("ngi,gio->ngo", values, weight).flatten(1)
        s_there[there] = values.sum(2)
        y, s = y + y_there, s + s_there
    ones = [1] * nd
    u = y - w_prime.view(-1, *ones) * s.repeat_interleave(per_out, 1)
    if layer.inner_bias is not None:
        u = u + layer.inner_bias.view(-1, *ones)
    branch = torch.where(u > 0, u, torch.zeros_like(u))
    z = y + (branch if layer.gain is None else branch * layer.gain.view(-1, *ones))
    return z if layer.bias is None else z + layer.bias.view(-1, *ones)


@st.composite
def transposed(draw):
    nd = draw(st.sampled_from([1, 2, 3]))
    dims = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * nd))  # noqa: E731
    groups, per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, stride, dilation = dims(1, 3), dims(1, 3), dims(1, 2)
    size = dims(1, 3 if nd == 3 else 4)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    bare = [(n - 1) * s + r + o for n, s, r, o in zip(size, stride, reach, output_padding, strict=True)]
    padding = tuple(draw(st.integers(0, min(2, (b - 1) // 2))) for b in bare)
    seed = draw(st.integers(0, 2**31))
    layer = TRANSPOSED[nd](
        groups * per_in,
        groups * per_out,
        kernel,
        stride,
        padding,
        output_padding,
        groups,
        draw(st.booleans()),
        dilation,
        dtype=torch.float64,
        **draw(COLLISIONS),
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draw(st.integers(1, 2)), layer.in_channels, *size, dtype=torch.float64, generator=generator)
    return randomise(layer, seed + 1), x


@settings(max_examples=50)
@given(transposed())
def test_equals_the_reference(drawn):
    layer, x = drawn
    plain = layer.basic_type.forward(layer, x)  # torch's own, for its size
    w = (layer.collision.detach() * layer.sum_scale).requires_grad_()
    x, x_ref = x.clone().requires_grad_(), x.clone().requires_grad_()
    z, z_ref = layer(x), reference(layer, x_ref, w, plain.shape[2:])
    torch.testing.assert_close(z, z_ref, rtol=1e-10, atol=1e-10)
    dz = torch.randn_like(z)
    others = {k: p for k, p in layer.named_parameters() if k != "collision"}
    got = torch.autograd.grad(z, [x, layer.collision, *others.values()], dz)
    want = torch.autograd.grad(z_ref, [x_ref, w, *others.values()], dz, materialize_grads=True)
    want = [want[0], want[1] * layer.sum_scale, *want[2:]]
    for name, a, b in zip(["x", "collision", *others], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"gradient of {n}: {m}")


@settings(max_examples=40)
@given(transposed())
def test_the_sum_is_a_transposed_convolution_with_ones(drawn):
    layer, x = drawn
    nd = len(layer.kernel_size)
    size = list(layer(x).shape[2:])
    ones = torch.ones(layer.in_channels, 1, *layer.kernel_size, dtype=torch.float64)
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[nd]
    conv = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    window = [list(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    s = transposed_sum(x, *window, layer.groups, size, 3.0)
    torch.testing.assert_close(s, 3 * function(x, ones, None, *conv), rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(transposed())
def test_the_leaky_form_holds(drawn):
    # z = w's + 2 leaky_relu(u, 1/2) with u = conv_transpose(x, W - w'): an output sees every channel of its group once.
    layer, x = drawn
    nd, g = len(layer.kernel_size), layer.groups
    if layer.gain is not None:
        return
    z = layer(x)
    basic, ones = copy.deepcopy(layer), [1] * nd
    w = layer.collision_weight
    revert_(basic)
    inner = torch.zeros_like(w) if layer.inner_bias is None else layer.inner_bias
    with torch.no_grad():
        basic.weight.sub_(w.view(g, 1, -1, *ones).expand(g, layer.in_channels // g, -1, *ones).flatten(0, 1))
        outer = 0 if basic.bias is None else basic.bias.clone()
        basic.bias = nn.Parameter(inner.clone())
        u = basic(x)
    window = [list(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    s = transposed_sum(x, *window, g, list(z.shape[2:])).repeat_interleave(layer.out_channels // g, 1)
    expected = w.view(-1, *ones) * s + 2 * F.leaky_relu(u, 0.5) + (outer - inner).view(-1, *ones)
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_gradcheck_and_gradgradcheck(make, shape):
    assert_gradients(randomise(make(dtype=torch.float64), 3), torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize(("make", "shape"), UNITS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of decisions by sizes
def test_compile_export_and_trace_equal_eager(make, shape):
    layer, x = randomise(make(), 4).eval(), torch.randn(shape)
    exported = torch.export.export(layer, (x,)).module()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for other in (exported, compiled, torch.jit.trace(layer, x)):
        torch.testing.assert_close(other(x), layer(x))


def test_output_size_and_unbatched_inputs_as_torch():
    layer = randomise(ICConvTranspose2d(2, 3, 3, 2, 1, dtype=torch.float64), 5)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    assert layer(x).shape[2:] == (7, 9)
    z = layer(x, output_size=[8, 10])
    assert z.shape[2:] == (8, 10)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    with pytest.raises(ValueError, match="requested an output size of"):
        layer(x, output_size=[20, 20])


@pytest.mark.parametrize(("stride", "fan_in"), [(1, 4 * 16), (2, 4 * 4), (3, 4 * 4), (4, 4), (5, 4)])
def test_fan_in_is_the_most_inputs_that_meet(stride, fan_in):
    layer = ICConvTranspose2d(8, 6, 4, stride, groups=2)
    assert layer.fan_in == fan_in
    window = ([4, 4], [stride] * 2, [0, 0], [1, 1])
    size = [(6 - 1) * stride + 4] * 2
    assert transposed_sum(torch.ones(1, 8, 6, 6), *window, 2, size).max().item() == fan_in


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_do_not_overflow(dtype):
    layer = ICConvTranspose2d(512, 2, 3, dtype=dtype)
    with torch.no_grad():
        layer.weight.fill_(1e-3)
    z = layer(torch.full((1, 512, 3, 3), 1000.0, dtype=dtype))
    assert z.dtype == dtype
    assert z.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = transposed_sum(torch.ones(1, 300, 2, 2), [2, 2], [1, 1], [0, 0], [1, 1], 1, [3, 3])
    assert s.dtype == torch.float32
    assert s[0, 0, 1, 1] == 1200


class UpAndDown(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 5, 4, 2, 1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(self.up(self.down(x).relu()))


def test_converts_saves_loads_and_reverts(tmp_path):
    basic = UpAndDown().eval()
    model, x = copy.deepcopy(basic), torch.randn(2, 3, 8, 8)
    report = convert_(model, ICConfig(warm_start="gain"))
    assert report.converted == ["down", "up"]
    assert {k for k in model.up.state_dict() if k not in basic.up.state_dict()} == {"collision", "inner_bias", "gain"}
    assert model.up.collision.shape == (5,)
    torch.testing.assert_close(model(x), basic(x), rtol=0, atol=0)
    randomise(model.up, 1)
    save(model, tmp_path / "ic.safetensors")
    assert torch.equal(load(tmp_path / "ic.safetensors", UpAndDown())(x), model(x))
    y = basic.norm(nn.ConvTranspose2d.forward(model.up, basic.down(x).relu()))
    assert revert_(model) == ["down", "up"]
    assert type(model.up) is nn.ConvTranspose2d
    torch.testing.assert_close(model(x), y)


def test_calibration_fires_as_often_as_asked():
    model, x = UpAndDown().eval(), torch.randn(8, 3, 16, 16)
    convert_(model, ICConfig(warm_start="calibrate", calibration_rate=0.05, max_change=None), calibration_data=[x])
    assert model.up.collision.any()  # behind a ReLU it is w' that is set
    with torch.no_grad():
        h = model.down(x).relu()
        branch = model.up(h) - nn.ConvTranspose2d.forward(model.up, h)
    assert 0.01 < (branch > 0).float().mean() < 0.15


def test_fuse_deploys_it():
    model, x = UpAndDown().eval(), torch.randn(2, 3, 8, 8)
    convert_(model)
    randomise(model.up, 2)
    z = model(x)
    report = fuse_(model, x)
    assert report.fused == ["down", "up"]
    assert report.skipped == {}
    torch.testing.assert_close(model(x), z, rtol=1e-4, atol=1e-4)
    unit = randomise(ICConvTranspose2d(3, 4, 3), 1).eval()
    y = unit(x)
    assert deploy_(unit) is unit
    assert not isinstance(unit, ICConvTranspose2d)
    torch.testing.assert_close(unit(x), y, rtol=1e-4, atol=1e-4)
