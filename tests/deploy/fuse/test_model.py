"""What a deployed model remains: an nn.Module that is copied, pickled, traced and exported."""

import copy
import io

import pytest
import torch
from torch import nn

import strategies
from deploy.fuse.networks import Net, random_norm, small
from icnets import ICConv2d, convert_
from icnets.deploy.fuse import fuse_
from icnets.unit.deployed import FusedICConv2d


def test_objects_stay_and_shared_modules_are_fused_once():
    conv = strategies.randomise(ICConv2d(4, 4, 3, padding=1), 0)
    model = nn.Sequential(conv, nn.ReLU(), conv).eval()
    x = torch.randn(1, 4, 6, 6)
    expected = model(x)
    assert fuse_(model, x).fused == ["0"]
    assert model[0] is model[2] is conv
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_fusing_twice_changes_nothing():
    model = Net(lambda net, x: net.bn(net.conv(x))).eval()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    fuse_(model, x)
    state = copy.deepcopy(model.state_dict())
    report = fuse_(model, x)
    assert str(report).startswith("fused 0 IC units, folded 0 batch norms")
    assert report.max_error == 0
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_deployed_model_is_copied_pickled_and_not_converted():
    model = nn.Sequential(strategies.randomise(ICConv2d(4, 4, 3), 0), random_norm(nn.BatchNorm2d(4))).eval()
    x = torch.randn(1, 4, 8, 8)
    fuse_(model, x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), model(x))
    assert set(model.state_dict()) <= {f"0.{k}" for k in ("weight", "bias", "collision", "offset", "sign", "slope")}
    assert "behaviour of its own" in convert_(model).skipped["0"]
    assert "deployed=(" in repr(model)
    with pytest.raises(TypeError, match="fuse_"):
        FusedICConv2d()


def test_fx_and_export():
    model, x = small()
    fuse_(model, x)
    expected = model(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=True)
    torch.testing.assert_close(program.module()(x[:1].repeat(5, 1, 1, 1)), model(x[:1].repeat(5, 1, 1, 1)))
    operators = {str(n.target) for n in program.run_decompositions().graph.nodes if n.op == "call_function"}
    assert all(name.startswith("aten.") for name in operators)
