"""The deployed form's kernels against the unit in float64."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icnets import ICConv2d
from icnets.unit import functional
from icnets.unit.deployed import Affine, deploy_
from strategies import randomise

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
        patch.setattr(functional, "_ENABLED", False)
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
    with torch.no_grad():
        close(layer(x), z.to(device), x.dtype)
