"""Trained networks through everything that is promised of a conversion: their function is kept."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.export.artifacts import SUFFIX, load_artifact, load_outputs, needs
from icnets import ICConfig, convert_, fuse_, ic_parameters, load, revert_, save
from icnets.export import export
from icnets.unit.layers import IC_LAYERS
from trained.networks import ALL, SMALL, Trained, values

LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in SMALL]
EVERY = [*SMALL, *LARGE]


@pytest.fixture(scope="module")
def made() -> dict[str, Trained]:
    return {}


@pytest.fixture
def trained(request: pytest.FixtureRequest, made: dict[str, Trained]) -> Trained:
    """A copy of the network, and its inputs."""
    name = request.param
    if name not in made:
        made[name] = ALL[name]()
    model, x = made[name]
    return copy.deepcopy(model), x


def units(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, IC_LAYERS)]


def awake(model: nn.Module) -> nn.Module:
    """Converted, every new parameter moved: a function far from the basic network's."""
    convert_(model, ICConfig(warm_start="gain"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, p in ic_parameters(model):
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def change(model: nn.Module, basic: nn.Module, x: Tensor) -> float:
    a, b = values(model(x)), values(basic(x))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("trained", list(ALL), indirect=True)
def test_gain_keeps_the_function(trained: Trained) -> None:
    basic, x = trained
    model = copy.deepcopy(basic)
    assert convert_(model, ICConfig(warm_start="gain")).converted
    assert change(model, basic, x[:4]) < 1e-6
    revert_(model)
    assert torch.equal(values(model(x[:4])), values(basic(x[:4])))


@pytest.mark.parametrize(
    "trained", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("lite0", "mobilenet")), *SMALL], indirect=True
)
def test_calibrate_keeps_the_function_on_other_data(trained: Trained) -> None:
    """Even and odd images are of two photographs, so what is unseen is unlike what was seen."""
    basic, x = trained
    model, seen, unseen = copy.deepcopy(basic), x[::2], x[1::2]
    found = convert_(model, ICConfig(warm_start="calibrate"), calibration_data=[seen]).calibration
    assert found is not None
    assert found.change <= 0.002
    assert found.agreement == 1
    assert change(model, basic, unseen) <= 0.01
    with torch.no_grad():
        same = values(model(unseen)).argmax(1) == values(basic(unseen)).argmax(1)
    assert same.float().mean() >= 0.98
    values(model(seen)).square().sum().backward()
    learning = [any(p.grad is not None and bool(p.grad.any()) for _, p in ic_parameters(u)) for u in units(model)]
    assert sum(learning) / len(learning) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "warm_start"),
    [*((name, "gain") for name in ALL), *((name, "calibrate") for name in ("mobilenet", "onet", "crepe"))],
    indirect=["trained"],
)
def test_trains_saves_and_loads(trained: Trained, warm_start: str, tmp_path: Path) -> None:
    basic, x = trained
    model, x = copy.deepcopy(basic), x[:8]
    convert_(model, ICConfig(warm_start=warm_start), calibration_data=[x])
    start = {name: p.detach().clone() for name, p in ic_parameters(model)}
    target = values(basic(x)).detach().flip(0)  # anything that it doesn't say yet
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (values(model(x)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [not torch.equal(p, start[name]) for name, p in ic_parameters(model)]
    assert sum(moved) / len(moved) > 0.8  # at w' = 0 a branch behind which no output is positive never fires
    save(model, tmp_path / "ic.safetensors")
    again = load(tmp_path / "ic.safetensors", copy.deepcopy(basic))
    assert torch.equal(values(again(x)), values(model.eval()(x)))
    reverted = copy.deepcopy(model)
    revert_(reverted)
    assert not units(reverted)
    assert list(reverted.state_dict()) == list(basic.state_dict())
    assert torch.equal(next(reverted.parameters()), next(model.parameters()))


@pytest.mark.parametrize("trained", EVERY, indirect=True)
def test_fuses_whole(trained: Trained) -> None:
    basic, x = trained
    model = awake(basic)
    fused = copy.deepcopy(model)
    report = fuse_(fused, example_input=x[:2])
    assert change(fused, model, x[32:40]) < 1e-4
    assert not units(fused), str(report)


# All as ONNX; in the other formats one with forward passes of its own, one of several outputs, and sound.
EXPORTED = [(name, "onnx") for name in ALL]
EXPORTED += [(name, format) for format in ("openvino", "torch-export") for name in ("foreign", "onet", "silero")]


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "format"), EXPORTED, indirect=["trained"])
def test_exports(trained: Trained, format: str, tmp_path: Path) -> None:
    needs(format)
    basic, x = trained
    model, path = awake(basic), tmp_path / f"net{SUFFIX[format]}"
    report = export(model, path, format, x[:1], evaluation_data=[x[:8]])
    assert report.max_relative_error <= 1e-4
    with torch.no_grad():
        expected = values(model(x[:3]))
        found = values(load_outputs(path, format)(x[:3]))
    assert (found - expected).norm() <= 1e-4 * expected.norm()


# Known, and in the docs. The likely reason: a calibrated w' is large, and y a small difference of two large terms.
_CANCELS = pytest.mark.xfail(reason="int8 of a calibrated network loses accuracy; docs/convert.md has figures")


@pytest.mark.slow  # a minute or two each; benchmarks/trained_networks.py has the others
@pytest.mark.parametrize(
    ("trained", "warm_start"),
    [("lite0", "gain"), ("crepe", "gain"), pytest.param("crepe", "calibrate", marks=_CANCELS)],
    indirect=["trained"],
)
def test_int8_agrees_as_well_as_the_basic_network_does(trained: Trained, warm_start: str, tmp_path: Path) -> None:
    needs("onnx")
    basic, x = trained
    model = copy.deepcopy(basic)
    convert_(model, ICConfig(warm_start=warm_start), calibration_data=[x[::2]])
    agreed = {}
    for name, network in (("basic", basic), ("ic", model)):
        path = tmp_path / f"{name}.onnx"
        export(network, path, "onnx", x[:1], int8=True, calibration_data=[x[::2]], evaluation_data=[x], max_loss=1.0)
        with torch.no_grad():
            expected = values(network(x)).argmax(1)
        agreed[name] = float((values(load_artifact(path, "onnx")(x)).argmax(1) == expected).float().mean())
    assert agreed["ic"] >= agreed["basic"] - 0.02, agreed
