"""The deployed form's kernels against the unit in float64."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from icnets import ICConv2d, fuse_
from icnets.deploy import Affine, deploy_
from icnets.kernels import eager, gpu
from icnets.kernels.gpu import choice, pointwise
from strategies import randomise

# In the interpreter tl.dot takes bfloat16 for the integers that hold it.
HALF = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]
ROUNDINGS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MANY = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def deployed(draw, kernels, dtypes, formats):
    """A deployed layer, an input, and what the unit gives for it in float64."""
    groups = draw(st.sampled_from([1, 1, 2, 4])) if kernels != (1,) else 1
    c_in, c_out = (groups * draw(st.integers(1, most)) for most in (20, 12))
    kernel = draw(st.sampled_from(kernels))
    layer = ICConv2d(c_in, c_out, kernel, draw(st.integers(1, 2)), kernel // 2, groups=groups, bias=draw(st.booleans()))
    layer = randomise(layer, draw(st.integers(0, 99))).eval()
    after = None
    if draw(st.booleans()):  # slopes and signs by channel
        after = Affine(torch.randn(c_out, dtype=torch.float64), torch.randn(c_out, dtype=torch.float64))
    dtype = draw(st.sampled_from(dtypes))
    size = (draw(st.integers(1, 2)), c_in, draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    x = torch.randn(size).to(dtype).contiguous(memory_format=draw(st.sampled_from(formats)))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "_ENABLED", False)
        deploy_(layer.to(dtype), after)
        z = copy.deepcopy(layer).double()(x.double())  # of the rounded weights
    return layer, x, z


def close(found, expected, dtype):
    assert found.dtype == dtype
    size = expected.abs().max().clamp(min=1).item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=size * ROUNDINGS[dtype])


@MANY
@given(deployed((1, 3), list(ROUNDINGS), [torch.contiguous_format, torch.channels_last]))
def test_one_pass_behind_the_convolution(device, drawn):
    layer, x, z = drawn
    layer, x = layer.to(device), x.to(device)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "deployed_pointwise", lambda *a: None)
        close(layer(x), z.to(device), x.dtype)


@pytest.mark.parametrize("name", pointwise.BLOCKS)
@MANY
@given(drawn=deployed((1,), HALF, [torch.channels_last]))
def test_pointwise(device, name, drawn):
    layer, x, z = drawn
    layer, x = layer.to(device), x.to(device)
    post = (layer.slope, layer.uniform_slope, layer.sign, layer.collision, layer.offset)
    arguments = (x, layer.weight, layer.bias, layer.stride, post, name)
    found = pointwise.launch(*arguments)
    close(found, z.to(device), x.dtype)
    shortcut = torch.randn_like(found)
    with_shortcut = pointwise.launch(*arguments, shortcut, True)
    close(with_shortcut, (z.to(device) + shortcut.double()).relu(), x.dtype)


def test_a_deployed_layer_uses_it_where_it_may(device, monkeypatch):
    launched, launch = [], pointwise.launch
    monkeypatch.setattr(pointwise, "launch", lambda *a: launched.append(a[-1]) or launch(*a))
    monkeypatch.setattr(choice, "fastest", lambda what, ways, device: next(iter(ways)))
    monkeypatch.setattr(pointwise, "fastest", choice.fastest)
    model = nn.Sequential(ICConv2d(8, 16, 1), nn.BatchNorm2d(16), ICConv2d(16, 8, 3, padding=1), ICConv2d(8, 8, 1))
    model = randomise(model, 1).eval().to(device).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 5, device=device).contiguous(memory_format=torch.channels_last)
    fuse_(model, x)
    assert not launched  # single precision
    model, x = model.half(), x.half()
    with torch.no_grad():
        found = model(x)
        assert len(launched) == 2
        copy.deepcopy(model).to(memory_format=torch.contiguous_format)(x.contiguous())
        assert len(launched) == 2
        monkeypatch.setattr(eager, "_ENABLED", False)
        close(found, model.double()(x.double()), torch.float16)


def test_the_fastest_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("ICNETS_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_loaded", set())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    measured = []
    monkeypatch.setattr(choice, "_measure", lambda ways: measured.append(list(ways)) or "b")
    cuda, ways = torch.device("cuda"), {"a": lambda: 1, "b": lambda: 2}
    assert [choice.fastest("this", ways, cuda) for _ in range(3)] == ["b"] * 3
    assert len(measured) == 1
    assert choice.fastest("this", {"a": lambda: 1}, torch.device("cpu")) == "a"
    (line,) = json.loads((tmp_path / "fastest.json").read_text()).items()
    assert line == (f"a GPU / torch {torch.__version__} / this", "b")
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_loaded", set())
    assert choice.fastest("this", ways, cuda) == "b"
    assert len(measured) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choice.fastest("that", ways, cuda) == "a"
    assert len(measured) == 1
    (tmp_path / "fastest.json").write_text("not json")
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_loaded", set())
    assert choice.fastest("this", ways, cuda) == "a"  # while a graph is recorded nothing is measured
