"""Surgery on networks that other tools changed before or after it, and wherever it is called."""

import copy
import pickle

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from icnets import ICConfig, convert_, ic_parameters, load_basic_state_dict, revert_


class Squared(nn.Module):
    def forward(self, x):
        return x * x

    def right_inverse(self, x):
        return x.abs().sqrt()


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)).eval()


def inputs():
    return torch.randn(2, 3, 9, 8)


def trained_tensors(model):
    """Names of the parameters that get a gradient, the collisions being awake."""
    gains = [m.gain for m in model.modules() if isinstance(getattr(m, "gain", None), nn.Parameter)]
    with torch.no_grad():
        for gain in gains:
            gain.fill_(0.5)
    model.zero_grad()
    model(inputs()).square().sum().backward()
    with torch.no_grad():
        for gain in gains:
            gain.zero_()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


# -- vectors that are computed ---------------------------------------------------------------------------------------


def pruned_twice(layer):
    prune.random_unstructured(layer, "collision", 1)
    prune.random_unstructured(layer, "collision", 1)


def weight_too(layer):
    parametrize.register_parametrization(layer, "inner_bias", Squared())
    parametrize.register_parametrization(layer, "weight", Squared())


COMPUTED = {
    "pruned": (lambda layer: prune.l1_unstructured(layer, "collision", 0.5), {"collision_orig"}),
    "pruned twice": (pruned_twice, {"collision_orig"}),
    "gain pruned": (lambda layer: prune.random_unstructured(layer, "gain", 1), {"gain_orig"}),
    "parametrised": (
        lambda layer: parametrize.register_parametrization(layer, "collision", Squared()),
        {"parametrizations.collision.original"},
    ),
    "weight norm": (
        lambda layer: parametrizations.weight_norm(layer, "inner_bias", dim=None),
        {"parametrizations.inner_bias.original0", "parametrizations.inner_bias.original1"},
    ),
    "weight parametrised too": (weight_too, {"parametrizations.inner_bias.original"}),
    "old weight norm": (
        lambda layer: nn.utils.weight_norm(layer, "inner_bias", dim=None),
        {"inner_bias_g", "inner_bias_v"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_vector_is_found_trained_and_reverted(name):
    change, added = COMPUTED[name]
    model, x = network(), inputs()
    kinds = [type(m) for m in model]
    y = model(x)
    convert_(model, ICConfig(warm_start="gain", collision_weight=0.5))
    with torch.no_grad():
        model[0].inner_bias.fill_(0.25)
        model[0].gain.fill_(0.5)
    change(model[0])
    names = dict(ic_parameters(model))
    assert {f"0.{n}" for n in added} <= names.keys()
    assert all(model.get_parameter(n) is p for n, p in names.items())
    assert not torch.equal(model(x), y)
    assert {f"0.{n}" for n in added} <= trained_tensors(model)
    revert_(model)
    assert not any("collision" in key or "inner_bias" in key or "gain" in key for key in model.state_dict())
    if name == "weight parametrised too":
        parametrize.remove_parametrizations(model[0], "weight")
    else:
        assert torch.equal(model(x), y)
    assert [type(m) for m in model] == kinds
    assert convert_(model).converted == ["0", "3"]


@pytest.mark.parametrize("name", ["pruned", "parametrised"])
def test_a_basic_state_dict_loads_beside_computed_vectors(name):
    basic, model, x = network(), network(), inputs()
    convert_(model, ICConfig(warm_start="gain"))
    COMPUTED[name][0](model[0])
    vectors = {n: p.detach().clone() for n, p in ic_parameters(model)}
    load_basic_state_dict(model, basic.state_dict())
    assert torch.equal(model(x), basic(x))
    assert all(torch.equal(p, vectors[n]) for n, p in ic_parameters(model))


def test_a_computed_vector_can_not_be_set():
    layer = nn.Conv2d(3, 4, 3)
    convert_(layer)
    prune.l1_unstructured(layer, "inner_bias", 0.5)
    layer.collision_weight = 0.5
    with pytest.raises(
        RuntimeError, match="inner_bias is computed, by pruning or a parametrisation; remove that to set it"
    ):
        layer.reset_collision()
    torch.testing.assert_close(layer.collision_weight, torch.full((4,), 0.5))


@pytest.mark.parametrize(
    "replaced", [lambda layer: setattr(layer, "collision", torch.zeros(4)), nn.utils.spectral_norm]
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated")
def test_what_revert_does_not_know_changes_nothing(replaced):
    model = network()
    convert_(model)
    layer = model[3]
    if replaced is nn.utils.spectral_norm:
        replaced(layer, "collision")
    else:
        del layer.collision
        replaced(layer)
    kinds, keys = [type(m) for m in model], list(model.state_dict())
    with pytest.raises(TypeError, match="collision isn't a Parameter any more; put back what took its place before"):
        revert_(model)
    assert ([type(m) for m in model], list(model.state_dict())) == (kinds, keys)
    model(inputs())


# -- layers that were changed before ---------------------------------------------------------------------------------


def pruned_by(method):
    return lambda layer: method(layer, "weight", 0.5)


BEFORE = {
    "pruned": pruned_by(prune.l1_unstructured),
    "pruned at random": pruned_by(prune.random_unstructured),
    "filters pruned": lambda layer: prune.ln_structured(layer, "weight", 0.5, 1, 0),
    "bias pruned": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "parametrised": lambda layer: parametrize.register_parametrization(layer, "weight", Squared()),
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*_norm. is deprecated")
@pytest.mark.parametrize("name", BEFORE)
def test_a_computed_weight_stays_so(name):
    model, x = network(), inputs()
    BEFORE[name](model[0])
    y, state = model(x), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert_(model, ICConfig(warm_start="gain"), optimizers=[optimizer])
    assert torch.equal(model(x), y)
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for _, p in ic_parameters(model)}
    assert {n for n, _ in model.named_parameters()} == trained_tensors(model)
    revert_(model)
    torch.testing.assert_close(model(x), y)
    assert model.state_dict().keys() == state.keys()


# -- where it is called ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("start", ["none", "gain", "calibrate"])
def test_what_was_converted_in_a_context_without_gradients_trains(context, start):
    model = network()
    with context():
        convert_(model, ICConfig(warm_start=start), calibration_data=[inputs()])
    assert {n for n, _ in ic_parameters(model)} <= trained_tensors(model.train())
    torch.optim.SGD(model.parameters(), 0.1).step()


@pytest.mark.parametrize("convolution", [nn.Conv2d, StdConv2d, Conv2dSame, ScaledStdConv2d])
def test_the_default_device_and_dtype_do_not_matter(convolution):
    model = nn.Sequential(convolution(3, 4, 3))
    reference, x = copy.deepcopy(model), inputs()
    convert_(reference)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert convert_(model).converted == ["0"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(model(x), reference(x))


def test_a_model_without_values():
    with torch.device("meta"):
        model = network()
    with pytest.raises(ValueError, match="the model is on meta, without values; load its weights first"):
        convert_(model, ICConfig(warm_start="calibrate"), calibration_data=[inputs()])
    assert convert_(model).converted == ["0", "3"]
    assert model.to_empty(device="cpu")[0].collision.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_types_that_can_not_learn_are_left(dtype):
    model = network()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(dtype), requires_grad=False)
    assert convert_(model).skipped == {"0": f"its weight is {dtype}, in which nothing can be learned"}


def tied_weights():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    model[1].weight = model[0].weight
    return model


def two_names():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    model.add_module("again", model[0])
    return model


def dictionary():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"layers": nn.Conv2d(3, 3, 3), "a b": nn.Conv2d(3, 3, 1)})

        def forward(self, x):
            for layer in self.layers.values():
                x = layer(x)
            return x

    return Named()


@pytest.mark.parametrize("make", [tied_weights, two_names, dictionary])
def test_shared_and_named_layers_convert_copy_and_revert(make):
    model, x = make(), inputs()
    y, shared = model(x), [id(p) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert_(model, ICConfig(warm_start="gain"), optimizers=[optimizer])
    assert torch.equal(model(x), y)
    new = [p for _, p in ic_parameters(model)]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in new]
    assert torch.equal(copy.deepcopy(model)(x), y)
    if make is not dictionary:  # of a local class
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    revert_(model)
    assert torch.equal(model(x), y)
    assert [id(p) for p in model.parameters()] == shared


# -- basic state dicts and optimizer states --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: "weights.pt", TypeError, "state_dict is a str; pass what torch.load"),
        (lambda s: {**s, "3.weight": s["3.weight"].numpy()}, TypeError, "'3.weight' is a ndarray; it must be a tensor"),
        (
            lambda s: {**s, "3.weight": s["3.weight"].to("meta")},
            TypeError,
            "'3.weight' is on the meta device and has no values",
        ),
        (lambda s: {"state_dict": s}, ValueError, "it has the unknown state_dict"),
    ],
)
def test_a_state_dict_that_can_not_be_loaded_loads_nothing(change, error, message):
    model = network()
    convert_(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        load_basic_state_dict(model, change(network().state_dict()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_load_that_fails_halfway_is_undone():
    model = network()
    convert_(model)
    before = copy.deepcopy(model.state_dict())
    handle = model[3].register_load_state_dict_pre_hook(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        load_basic_state_dict(model, network().state_dict())
    handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_state_of_an_optimizer_from_before_the_conversion_goes_on(kind):
    options = {"momentum": 0.9} if kind is not torch.optim.AdamW else {}
    basic = network()
    old = kind(basic.parameters(), lr=0.01, **options)
    for _ in range(2):
        basic(inputs()).square().sum().backward()
        old.step()
    model = network()
    model.load_state_dict(basic.state_dict())
    optimizer = kind(model.parameters(), lr=0.5, **options)
    optimizer.load_state_dict(old.state_dict())
    convert_(model, ICConfig(warm_start="gain"), optimizers=[optimizer])
    for p, q in zip(basic.parameters(), model.parameters(), strict=False):
        assert q.shape != p.shape or not torch.equal(p, q) or old.state[p].keys() == optimizer.state[q].keys()
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.01]
    again = network()
    second = kind(again.parameters(), lr=0.5, **options)
    convert_(again, ICConfig(warm_start="gain"), optimizers=[second])
    second.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        second.load_state_dict(old.state_dict())
