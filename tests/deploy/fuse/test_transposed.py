"""Transposed units, deployed: exact for every option, with norms behind them, and norms behind basic ones."""

import copy
import pickle

import pytest
import torch
from torch import nn

import strategies
from deploy.fuse.networks import random_norm, relative_error
from icnets import ICConfig, convert_, fuse_
from icnets.unit.deployed import FUSED_LAYERS

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
BASIC = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OPTIONS = {
    "plain": {},
    "grouped": {"groups": 2, "bias": False},
    "depthwise": {"groups": 4, "stride": 2},
    "strided": {"stride": 3, "padding": 1, "output_padding": 2},
    "dilated": {"dilation": 2, "stride": 2, "output_padding": 1},
}


@pytest.mark.parametrize("warm_start", [None, "none", "gain"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_exact(nd, options, warm_start):
    model = nn.Sequential(BASIC[nd](4, 8, 3, **OPTIONS[options]), random_norm(NORMS[nd](8))).eval()
    if warm_start is not None:
        convert_(model, ICConfig(warm_start=warm_start))
        strategies.randomise(model[0], 0)
    model.double()
    inputs = [torch.randn(n, 4, *[size] * nd, dtype=torch.float64) for n, size in ((2, 4), (1, 5))]
    expected = [model(x) for x in inputs]
    report = fuse_(model, inputs[0])
    assert report.folded == {"1": "0"}
    assert report.skipped == {}
    assert report.fused == ([] if warm_start is None else ["0"])
    assert isinstance(model[0], FUSED_LAYERS) == (warm_start is not None)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for x, y in zip(inputs, expected, strict=True):
            assert relative_error(twin(x), y) < 1e-12
            assert relative_error(twin[0](x[0]), y[0]) < 1e-12


def test_in_single_precision_with_a_size_exported_and_traced():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), random_norm(nn.BatchNorm2d(6)))
    convert_(model, ICConfig(warm_start="gain"))
    strategies.randomise(model[0], 0)
    model.eval()
    x = torch.randn(2, 4, 5, 6)
    expected, sized = model(x), model[1](model[0](x, output_size=[9, 11]))
    fuse_(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[0](x, output_size=[9, 11]), sized, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, rtol=1e-4, atol=1e-4)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x[:1]), expected[:1], rtol=1e-4, atol=1e-4)
