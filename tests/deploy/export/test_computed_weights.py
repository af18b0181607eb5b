"""Networks whose weights are computed, by pruning, norms or parametrisations, and such as hold results of a pass."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from deploy.export.artifacts import assert_equal_outputs, needs, randomised
from icnets import convert_
from icnets.export import export
from icnets.profile.measure import count_macs, measure_latency


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def pruned(unit):
    prune.l1_unstructured(unit, "weight", 0.5)


def pruned_vectors(unit):
    prune.random_unstructured(unit, "collision", 0.5)
    prune.random_unstructured(unit, "inner_bias", 0.5)
    prune.ln_structured(unit, "weight", 0.5, 2, 0)


def pruned_twice(unit):
    prune.l1_unstructured(unit, "weight", 0.2)
    prune.random_unstructured(unit, "weight", 0.2)


def parametrised_bias(unit):
    parametrize.register_parametrization(unit, "inner_bias", Halved())
    parametrize.register_parametrization(unit, "bias", Halved())


def of_another_layer(unit):
    base = unit.weight
    del unit._parameters["weight"]
    unit.weight = base * 2  # as a hypernetwork leaves it


FORMS = [pruned, pruned_vectors, pruned_twice, parametrised_bias, of_another_layer]
FORMS += [weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm]


def network(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())
    convert_(model)
    randomised(model)
    for layer in (model[0], model[3]):
        form(layer)
    model(torch.randn(4, 2, 8, 8))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "fuse"),
    [*((form, True) for form in FORMS), (pruned, False), (parametrizations.spectral_norm, False)],
    ids=lambda f: str(f) if isinstance(f, bool) else f"{f.__module__.rpartition('.')[2]}.{f.__name__}",
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_artifact_has_the_function_of_the_moment(form, fuse, tmp_path: Path) -> None:
    model = network(form)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        y = model(torch.ones(1, 2, 8, 8))
    path = tmp_path / "net.pt2"
    export(model, path, "torch-export", torch.zeros(1, 2, 8, 8), fuse=fuse)
    assert_equal_outputs(model, path, "torch-export", (2, 8, 8))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(torch.ones(1, 2, 8, 8)), y)


@pytest.mark.parametrize("form", [pruned_vectors, spectral_norm])
def test_onnx(form, tmp_path: Path) -> None:
    needs("onnx")
    model = network(form)
    export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 2, 8, 8))
    assert_equal_outputs(model, tmp_path / "net.onnx", "onnx", (2, 8, 8))


@pytest.mark.parametrize("form", [pruned, pruned_vectors, parametrised_bias, weight_norm, spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_measurements_of_such_units(form) -> None:
    model, x = network(form), torch.randn(2, 2, 8, 8)
    assert 0 < count_macs(model, x).ic < count_macs(model, x).total
    assert measure_latency({"": model}, x, rounds=1)[""].ms_per_image > 0


class Remembering(nn.Module):
    """Keeps its features with their graph, has hooks, and makes a buffer at its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.features, self.scale = nn.Conv2d(2, 4, 3), [], None
        self.conv.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        self.conv.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        if self.scale is None:
            self.scale = torch.full((1,), 3.0)
        y = self.conv(x) * self.scale
        if torch.is_grad_enabled():
            self.features = [{"last": y}]
        return y


def test_network_that_holds_results_of_a_pass(tmp_path: Path) -> None:
    model = Remembering()
    convert_(model)
    randomised(model)
    model(torch.randn(2, 2, 8, 8))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    held = model.features[0]["last"]
    export(model, tmp_path / "net.pt2", "torch-export", torch.zeros(1, 2, 8, 8))
    assert model.features[0]["last"] is held
    assert held.grad_fn is not None
    assert_equal_outputs(model, tmp_path / "net.pt2", "torch-export", (2, 8, 8))
