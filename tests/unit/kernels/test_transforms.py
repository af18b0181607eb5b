"""Gradients in other forms than one backward pass: batched, of torch.func, forward, of second order, per sample."""

import pytest
import torch
from torch import nn

from icnets import ICConv1d, ICConv2d, ICConv3d, ICConvTranspose2d, ICLinear
from icnets.unit import functional
from icnets.unit.deployed import deploy_
from strategies import randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch says so itself

F64 = {"dtype": torch.float64}
UNITS = [
    pytest.param(lambda: ICConv2d(2, 4, 3, **F64), (2, 2, 4, 4), id="plain"),
    pytest.param(lambda: ICConv2d(4, 4, 3, groups=2, padding=1, gain=0.5, **F64), (1, 4, 3, 4), id="groups"),
    pytest.param(lambda: ICConv2d(2, 4, 2, groups=2, dilation=2, bias=False, **F64), (2, 2, 4, 4), id="depthwise"),
    pytest.param(lambda: ICConv2d(4, 2, 1, stride=2, inner_bias=False, **F64), (2, 4, 4, 3), id="steps"),
    pytest.param(lambda: ICConv2d(2, 2, 1, groups=2, **F64), (2, 2, 2, 3), id="1x1"),
    pytest.param(lambda: ICConv2d(2, 2, 3, gain=-0.9, padding=1, **F64), (2, 2, 3, 3), id="by the formula"),
    pytest.param(lambda: ICConv2d(2, 2, 2, padding="same", **F64), (2, 2, 3, 3), id="padded unevenly"),
    pytest.param(lambda: ICConv2d(2, 2, 3, padding=1, padding_mode="reflect", **F64), (1, 2, 3, 3), id="reflected"),
    pytest.param(lambda: ICConv2d(2, 2, 2, **F64), (2, 3, 3), id="unbatched"),
    pytest.param(lambda: ICConv1d(2, 4, 3, padding=1, groups=2, **F64), (2, 2, 5), id="1d"),
    pytest.param(lambda: ICConv3d(2, 2, 2, stride=(1, 2, 1), **F64), (1, 2, 2, 4, 2), id="3d"),
    pytest.param(lambda: ICConvTranspose2d(2, 2, 2, 2, groups=2, **F64), (1, 2, 2, 2), id="transposed"),
    pytest.param(lambda: ICLinear(3, 4, gain=0.5, **F64), (3, 3), id="linear"),
]


def made(make, shape, channels_last=False):
    layer, x = randomise(make(), 1), torch.randn(shape, dtype=torch.float64)
    if layer.gain is not None:
        nn.init.constant_(layer.gain, layer.initial_gain)
    if channels_last and x.dim() == 4:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return layer, x.requires_grad_()


def assert_batched_as_one_by_one(outputs, inputs):
    """Rows of the Jacobian by one batched call, by vmap of a call, and by a call each."""
    rows = torch.eye(outputs.numel(), dtype=outputs.dtype).view(-1, *outputs.shape)

    def vjp(row):
        return torch.autograd.grad(outputs, inputs, row, retain_graph=True, materialize_grads=True)

    one_by_one = [torch.stack(g) for g in zip(*(vjp(row) for row in rows), strict=True)]
    options = {"retain_graph": True, "materialize_grads": True}
    batched = torch.autograd.grad(outputs, inputs, rows, is_grads_batched=True, **options)
    for found in (batched, torch.func.vmap(vjp)(rows)):
        torch.testing.assert_close(list(found), one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.clamp_(min=0)], ids=["output", "overwritten"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_batched_gradients(make, shape, channels_last, after):
    layer, x = made(make, shape, channels_last)
    inputs = [x, *layer.parameters()]
    assert_batched_as_one_by_one(after(layer(x)), inputs)
    frozen = [p.requires_grad_(False) for p in layer.parameters() if p is not layer.collision]
    assert frozen
    assert_batched_as_one_by_one(after(layer(x.detach())), [layer.collision])


@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.clamp_(min=0)], ids=["output", "overwritten"])
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_batched_gradients_of_second_order(make, shape, after):
    layer, x = made(make, shape)
    inputs = [x, *layer.parameters()]
    first = torch.autograd.grad(after(layer(x)).square().sum(), inputs, create_graph=True)
    assert_batched_as_one_by_one(torch.cat([g.flatten() for g in first]), inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own derivatives are scripted
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_jacobians_and_hessians(make, shape):
    layer, x = made(make, shape)
    outer = torch.autograd.functional
    expected = outer.jacobian(layer, x)
    ways = (
        outer.jacobian(layer, x, vectorize=True),
        outer.jacobian(layer, x, vectorize=True, strategy="forward-mode"),
        torch.func.jacrev(layer)(x),
        torch.func.jacfwd(layer)(x),
    )
    for found in ways:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def loss(x):
        return layer(x).square().sum()

    expected = outer.hessian(loss, x)
    for found in (outer.hessian(loss, x, vectorize=True), torch.func.hessian(loss)(x)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_an_overwritten_output_has_second_derivatives(monkeypatch, make, shape):
    layer, x = made(make, shape)
    inputs = [x, *layer.parameters()]

    def second():
        first = torch.autograd.grad(layer(x).relu_().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    fast = second()
    monkeypatch.setattr(functional, "_ENABLED", False)
    torch.testing.assert_close(fast, second(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["deterministic", "expanded", "every second place", "negated", "created in inference"])
@pytest.mark.parametrize(("make", "shape"), UNITS)
def test_inputs_and_modes_of_other_kinds(monkeypatch, make, shape, mode):
    layer, x = made(make, shape)
    x = x.detach()
    if mode == "expanded":
        x = x[:1].expand(shape)
    elif mode == "every second place":
        x = torch.stack([x, -x], -1)[..., 0]
    elif mode == "negated":  # a view whose sign torch keeps apart from its memory
        x = torch.complex(x, x).conj().imag
        assert x.is_neg()
    elif mode == "created in inference":
        with torch.inference_mode():
            x = x.clone()
    torch.use_deterministic_algorithms(mode == "deterministic")
    try:
        found = []
        for enabled in (True, False):
            monkeypatch.setattr(functional, "_ENABLED", enabled)
            with torch.inference_mode(mode == "created in inference"):
                z = layer(x)
            gradients = torch.autograd.grad(z.square().sum(), list(layer.parameters())) if z.requires_grad else ()
            found.append((z, *gradients))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_batched_gradients_of_the_deployed_form():
    layer, x = made(lambda: ICConv2d(4, 4, 3, groups=2, padding=1, **F64), (1, 4, 3, 3))
    expected = torch.autograd.functional.jacobian(layer.eval(), x)
    deploy_(layer)
    for vectorize in (True, False):
        found = torch.autograd.functional.jacobian(layer, x, vectorize=vectorize)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
