import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import icnets.timm_models
from icnets import ICConv1d, ICConv2d, ICConv3d, ICLinear
from icnets.unit import functional
from icnets.unit.deployed import Affine, deploy_
from strategies import convs, randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def by_formula(monkeypatch):
    """A context in which the fast path is off."""
    return monkeypatch.setattr(functional, "_ENABLED", False)


def gradients(layer, x, dz, after=lambda z: z):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    z = after(layer(x))
    return z, torch.autograd.grad(z, [x, *layer.parameters()], dz)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded gradient"])
@settings(max_examples=100)
@given(drawn=convs())
def test_equals_the_formula(layout, drawn):
    layer, x = drawn
    dz = torch.randn_like(layer(x))
    if layout == "channels_last" and x.dim() == 4:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    elif layout == "expanded gradient":
        dz = torch.ones((), dtype=dz.dtype).expand_as(dz)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast = gradients(layer, x, dz)
        by_formula(monkeypatch)
        slow = gradients(layer, x, dz)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


@settings(max_examples=100)
@given(convs(), st.booleans(), st.booleans())
def test_inference_equals_the_formula(drawn, inference_mode, channels_last):
    layer, x = drawn
    if channels_last and x.dim() == 4:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    kept = x.clone()
    with pytest.MonkeyPatch.context() as monkeypatch, torch.inference_mode() if inference_mode else torch.no_grad():
        z = layer(x)
        by_formula(monkeypatch)
        expected = layer(x)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


@settings(max_examples=100)
@given(convs(), st.booleans(), st.booleans())
def test_the_deployed_form_equals_the_formula(drawn, channels_last, uniform):
    layer, x = drawn
    layer, after = layer.eval(), None
    if not uniform:  # slopes and signs per channel
        scale = torch.randn(layer.out_channels, dtype=torch.float64)
        after = Affine(scale, torch.randn_like(scale))
    if channels_last and x.dim() == 4:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        z = layer(x)
        if after is not None:
            ones = [1] * (x.dim() - 2 if layer.weight.dim() == x.dim() else x.dim() - 1)
            z = z * after.scale.view(-1, *ones) + after.shift.view(-1, *ones)
        deploy_(layer, after)
        torch.testing.assert_close(layer(x), z, rtol=1e-10, atol=1e-10 * max(z.abs().max().item(), 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inference_within_the_types_rounding(dtype):
    layer = randomise(ICConv2d(16, 8, 3, padding=1, gain=0.5, dtype=torch.float64), 1)
    x = torch.randn(2, 16, 9, 9, dtype=dtype)
    with torch.no_grad():
        z, exact = copy.deepcopy(layer).to(dtype)(x), copy.deepcopy(layer).to(dtype).double()(x.double())
    assert z.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


def test_training_in_float32_within_rounding():
    layer, x = randomise(ICConv2d(16, 8, 3, padding=1, dtype=torch.float64), 1), torch.randn(2, 16, 9, 9)
    dz = torch.randn(2, 8, 9, 9)
    _, fast = gradients(copy.deepcopy(layer).float(), x, dz)
    _, exact = gradients(layer, x.double(), dz.double())
    for a, b in zip(fast, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, torch.contiguous_format),
        ({"gain": 0.5, "bias": False}, torch.channels_last),
        ({"groups": 2}, torch.contiguous_format),
        ({"groups": 4, "gain": -0.3}, torch.channels_last),
    ],
)
def test_training_in_half_precision_is_as_exact_as_the_formula(monkeypatch, options, layout, dtype, autocast):
    torch.manual_seed(3)
    exact = randomise(ICConv2d(16, 8, 3, padding=1, dtype=torch.float64, **options), 1).to(dtype).double()
    if exact.gain is not None:
        exact.gain.data.clamp_(min=-0.375)  # below -0.5 the formula itself is at work
    layer = copy.deepcopy(exact).to(torch.float32 if autocast else dtype).to(memory_format=layout)
    x = torch.randn(8, 16, 15, 15).to(dtype).contiguous(memory_format=layout)
    dz = torch.randn(8, 8, 15, 15).to(dtype)

    def found():
        with torch.autocast("cpu", dtype, enabled=autocast):
            return gradients(layer, x.float() if autocast else x, dz)

    z, fast = found()
    assert z.dtype == dtype
    assert z.grad_fn.name() == "CollideBackward"
    by_formula(monkeypatch)
    y, slow = found()
    _, true = gradients(exact, x.double(), dz.double())
    torch.testing.assert_close(z, y, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    for a, b, c in zip(fast, slow, true, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - c).norm() <= 1.25 * (b.double() - c).norm() + 1e-3 * c.norm()


def test_backward_within_autocast_sums_exactly():
    torch.manual_seed(4)
    layer, x = randomise(ICConv2d(4, 8, 3), 1), torch.randn(4, 4, 33, 33, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
        inside = torch.autograd.grad(z.float().square().sum(), layer.collision, retain_graph=True)
    outside = torch.autograd.grad(z.float().square().sum(), layer.collision)
    assert torch.equal(inside[0], outside[0])


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, -0.4, 0.7])
@pytest.mark.parametrize("groups", [1, 2])
def test_second_derivatives_with_a_gain(gain, groups):
    layer = randomise(ICConv2d(2, 4, 3, groups=groups, gain=gain, dtype=torch.float64), 5)
    with torch.no_grad():
        layer.gain.fill_(gain)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    names, params = zip(*layer.named_parameters(), strict=True)

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    assert run(x, *params).grad_fn.name() == "CollideBackward"
    assert torch.autograd.gradcheck(run, (x, *params))
    assert torch.autograd.gradgradcheck(run, (x, *params))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(ICConv1d, (2, 4, 9)), (ICConv2d, (2, 4, 9, 8)), (ICConv3d, (1, 4, 5, 4, 3))],
)
def test_an_output_overwritten_in_place_is_computed_again(monkeypatch, make, shape, gain, bias):
    layer = randomise(make(4, 6, 3, padding=1, groups=2, bias=bias, gain=gain, dtype=torch.float64), 2)
    if gain is not None:
        nn.init.constant_(layer.gain, gain)
    x = torch.randn(shape, dtype=torch.float64)
    dz = torch.randn_like(layer(x))
    for after in (nn.ReLU(inplace=True), lambda z: z.mul_(2).add_(1)):
        fast = gradients(layer, x, dz, after)
        with monkeypatch.context() as patch:
            by_formula(patch)
            slow = gradients(layer, x, dz, after)
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("how", ["checkpoint", "save_on_cpu"])
def test_under_saved_tensor_hooks(how, gain):
    convs = [randomise(ICConv2d(4, 4, 3, gain=gain, dtype=torch.float64), seed) for seed in (1, 2)]
    model = nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1])
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *model.parameters()]
    expected = torch.autograd.grad(model(x).square().sum(), inputs)
    if how == "checkpoint":
        z = checkpoint(model, x, use_reentrant=False)
    else:
        with torch.autograd.graph.save_on_cpu():
            z = model(x)
    torch.testing.assert_close(torch.autograd.grad(z.square().sum(), inputs), expected, rtol=1e-12, atol=1e-12)


def test_a_parameter_changed_before_backward_is_an_error():
    layer = ICConv2d(3, 4, 3)
    z = layer(torch.randn(1, 3, 5, 5))
    with torch.no_grad():
        layer.collision.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("frozen", ["weight", "collision", "all but b1"])
def test_partly_frozen_layers(monkeypatch, frozen):
    layer, x = randomise(ICConv2d(3, 4, 3, dtype=torch.float64), 3), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for name, p in layer.named_parameters():
        p.requires_grad_(name == "inner_bias" if frozen.startswith("all") else name != frozen)
    trained = [p for p in layer.parameters() if p.requires_grad]
    fast = torch.autograd.grad(layer(x).square().sum(), trained)
    by_formula(monkeypatch)
    torch.testing.assert_close(fast, torch.autograd.grad(layer(x).square().sum(), trained), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "taken"),
    [
        (lambda: (ICConv2d(3, 4, 3), torch.randn(2, 3, 6, 6)), True),
        (lambda: (ICConv2d(3, 4, 3, gain=0.0), torch.randn(2, 3, 6, 6)), True),
        (lambda: (ICConv2d(3, 4, 3, gain=-1.0), torch.randn(2, 3, 6, 6)), False),
        (lambda: (ICConv2d(3, 4, 3), torch.randn(3, 6, 6)), False),
        (lambda: (ICLinear(3, 4), torch.randn(2, 3)), False),
        (lambda: (ICConv2d(3, 4, 3, dtype=torch.bfloat16), torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)), True),
    ],
)
def test_where_it_serves_in_training(make, taken):
    layer, x = make()
    z = layer(x)
    assert (z.grad_fn.name() == "CollideBackward") is taken


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own derivatives are scripted
def test_steps_aside_for_forward_mode():
    layer, x = randomise(ICConv2d(3, 4, 3, dtype=torch.float64), 4), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        jvp = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    step = 1e-6
    expected = (layer(x + step * tangent) - layer(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp, expected, rtol=1e-6, atol=1e-6)


def saved_bytes(model, x):
    """Bytes that autograd keeps for backward, each memory once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x).sum()
    assert loss.requires_grad
    # s, which is kept beside autograd's own: it must count too.
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [n for n, _ in node.next_functions]
        for t in getattr(node, "rest", ()):
            if t is not None and t.untyped_storage().data_ptr() not in own:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(kept.values())


@pytest.mark.parametrize("warm_start", ["none", "gain"])
@pytest.mark.parametrize(("layers", "limit"), [("all", 1.02), ("kxk", 1.01)])
def test_training_keeps_no_more_than_the_basic_network(layers, limit, warm_start):
    import timm

    x = torch.randn(4, 3, 64, 64)
    basic = timm.create_model("resnet50").train()
    model = timm.create_model("ic_resnet50", ic=icnets.ICConfig(layers=layers, warm_start=warm_start)).train()
    ratio = saved_bytes(model, x) / saved_bytes(basic, x)
    assert 1 <= ratio <= limit


@pytest.mark.parametrize(("layers", "limit"), [("all", 1.03), ("kxk", 1.015)])
def test_training_in_half_precision_keeps_little_more(layers, limit):
    import timm

    x = torch.randn(4, 3, 64, 64, dtype=torch.bfloat16)
    basic = timm.create_model("resnet50").train().bfloat16()
    model = timm.create_model("ic_resnet50", ic=icnets.ICConfig(layers=layers)).train().bfloat16()
    ratio = saved_bytes(model, x) / saved_bytes(basic, x)
    assert 1 <= ratio <= limit  # s is kept in float32


@pytest.mark.parametrize("name", ["ic_resnet18", "ic_mobilenetv2_100", "ic_densenet121", "ic_efficientnet_b0"])
def test_a_training_step_of_a_network_equals_the_formulas(monkeypatch, name):
    import timm

    torch.manual_seed(1)
    model = randomise_new(timm.create_model(name, num_classes=5).double().train())
    twin = copy.deepcopy(model)
    x, target = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 3])
    torch.manual_seed(2)
    nn.functional.cross_entropy(model(x), target).backward()
    by_formula(monkeypatch)
    torch.manual_seed(2)
    nn.functional.cross_entropy(twin(x), target).backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9 * scale + 1e-12, msg=lambda m, n=n: f"{n}: {m}")


def randomise_new(model):
    with torch.no_grad():
        for _, p in icnets.ic_parameters(model):
            p.normal_(std=0.3)
    return model
