"""The kernels against the formula in float64, on the very numbers that they were given."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icnets import ICConv2d
from icnets.unit import functional
from icnets.unit.kernels import gpu
from strategies import randomise

# Two roundings of the result, and of sums.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MANY = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def column(v, t):
    return v.double().view(-1, *[1] * (t.dim() - 2))


def argument(y, s, v, factor, offset):
    u = y.double() - factor * column(v, y) * s.double().repeat_interleave(y.size(1) // s.size(1), 1)
    return u if offset is None else u + column(offset, y)


def close(found, expected, dtype):
    assert found.isfinite().all()
    size = expected.abs().max().clamp(min=1).item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=size * TOLERANCES[dtype])


@st.composite
def units(draw):
    """y, s and the arguments of a collision, none of whose branches is near its bend."""
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 5), (1, 64), (1, 600), (3, 4), (40, 1), (7, 3), (2, 300)]))
    dims = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 3)), groups * per_group, *(draw(st.integers(1, 5)) for _ in range(dims))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    y, s = normal(shape).to(dtype), normal(shape[0], groups, *shape[2:])
    if dims == 2:
        formats = [torch.contiguous_format, torch.channels_last]
        y, s = (t.contiguous(memory_format=draw(st.sampled_from(formats))) for t in (y, s))
    v = normal(shape[1])
    offset = normal(shape[1]) if draw(st.booleans()) else None
    gain = normal(shape[1]).abs() if draw(st.booleans()) else None
    factor = draw(st.sampled_from([1.0, 0.3]))
    y[argument(y, s, v, factor, offset).abs() < 0.05] += 0.5
    return y, s, v, factor, offset, gain


def on(device, *arguments):
    return [a.to(device, copy=True) if isinstance(a, torch.Tensor) else a for a in arguments]


@pytest.mark.slow
@MANY
@given(units())
def test_forward(device, drawn):
    y, s, v, factor, offset, gain = on(device, *drawn)
    u = argument(y, s, v, factor, offset).relu()
    expected = y.double() + (u if gain is None else column(gain, y) * u)
    kept = y.data_ptr()
    z = gpu.run("collide_", y, s, v, factor, offset, gain)
    assert z.data_ptr() == kept
    close(z, expected, y.dtype)


@pytest.mark.slow
@MANY
@given(units(), st.booleans())
def test_backward(device, drawn, from_y):
    z, s, v, factor, offset, gain = on(device, *drawn)
    if not from_y:
        gpu.run("collide_", z, s, v, factor, offset, gain)
    dz = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)  # of another memory format
    found = gpu.run("collide_backward", z, s, dz, from_y, v, factor, offset, gain)

    t = argument(z, s, v, factor, offset)
    m = torch.where(t > 0, dz.double(), 0)
    over = [0, *range(2, z.dim())]
    ones = torch.ones_like(v) if gain is None else gain
    wide = s.double().repeat_interleave(z.size(1) // s.size(1), 1)
    weighted = m * column(ones, z)
    expected = [
        dz + weighted,
        -factor * (weighted * column(v, z)).unflatten(1, [s.size(1), -1]).sum(2),
        -factor * (weighted * wide).sum(over),
        None if offset is None else weighted.sum(over),
        None if gain is None else (m * t).sum(over) / (1 if from_y else 1 + gain),
    ]
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None
        else:
            assert a.shape == b.shape
            close(a, b, z.dtype)
    again = gpu.run("collide_backward", z, s, dz, from_y, v, factor, offset, gain)
    assert all(a is b or torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("gain", [None, 0.5])
def test_a_layer_uses_them_in_training_and_inference(device, monkeypatch, channels_last, groups, gain):
    layer = randomise(ICConv2d(8, 12, 3, padding=1, groups=groups, gain=gain), 1).to(device)
    if gain is not None:
        layer.gain.data.abs_()
    x = torch.randn(2, 8, 6, 5, device=device)
    if channels_last:
        layer, x = (t.to(memory_format=torch.channels_last) for t in (layer, x))
    calls = []
    run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda name, *a: calls.append((name, found := run(name, *a))) or found)

    def outcome(layer, x):
        x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        z = layer(x)
        return z, *torch.autograd.grad(z.square().sum(), [x, *layer.parameters()])

    found = outcome(layer, x)
    if gain is None:  # with a gain the branch can't be read off z, and the formula runs
        assert [name for name, result in calls if result is not None] == ["collide_", "collide_backward"]
    with torch.no_grad():
        inferred = layer(x)
        assert calls[-1][0] == "collide_"
        assert calls[-1][1] is not None
    monkeypatch.setattr(functional, "_ENABLED", False)
    expected = outcome(copy.deepcopy(layer).double(), x.double())
    for a, b in zip((inferred, *found), (expected[0], *expected), strict=True):
        close(a, b, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("value", "on"), [(None, False), ("0", False), ("1", True)])
def test_they_are_off_unless_asked_for(value, on):
    environment = {name: v for name, v in os.environ.items() if name != "ICNETS_TRITON"}
    environment |= {} if value is None else {"ICNETS_TRITON": value}
    code = "from icnets.unit.kernels import gpu; print(gpu._available)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{on}\n"


def test_where_they_fail_torch_takes_over(device, monkeypatch):
    monkeypatch.setattr(gpu, "_available", True)
    monkeypatch.setattr(gpu, "import_module", lambda name: 1 / 0)
    y, s, v = torch.randn(2, 4, 3, 3, device=device), torch.randn(2, 1, 3, 3, device=device), torch.ones(4)
    expected = y + (y - s).relu()
    with pytest.warns(UserWarning, match=r"Triton kernels fail here \(ZeroDivisionError: .*without ICNETS_TRITON=1"):
        torch.testing.assert_close(functional.collide_(y, s, v.to(device), 1.0, None, None), expected)
    assert not gpu.serves(y)
