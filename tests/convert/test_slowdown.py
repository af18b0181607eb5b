"""A budget of time: how many units fit, by times that are simulated exactly, and in every engine by its own."""

import copy
import random
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from icnets import ICConfig, ICConv2d, convert_, load, save
from icnets.convert import slowdown
from icnets.support.rounds import Ratio


def layers(number: int = 12) -> nn.Sequential:
    """Convolutions whose units read and write more from layer to layer; every third is depthwise."""
    found: list[nn.Module] = []
    for i in range(number):
        width = 4 * (i + 1)
        found += [nn.Conv2d(width, width, 3, padding=1, groups=width)] if i % 3 == 2 else [nn.Conv2d(width, width, 1)]
        found += [nn.Conv2d(width, width + 4, 1)]
    return nn.Sequential(*found)


X = torch.randn(1, 4, 6, 6)


class Simulated:
    """Takes the place of the clock: each unit adds its part, and each measurement is off by ``noise``."""

    adds: dict[str, float]
    noise = 0.0
    asked: list[frozenset[str]]

    def __init__(self, trial: object, engine: str, example: torch.Tensor) -> None:
        self.networks, self.random = 0, random.Random(0)

    def __call__(self, names: object, longer: int = 1) -> tuple[Ratio, int]:
        names = frozenset(names)  # type: ignore[call-overload]
        self.networks += 1
        self.asked.append(names)
        ratio = 1 + sum(self.adds[name] for name in names) + self.noise / longer * self.random.uniform(-1, 1)
        return Ratio(ratio, ratio, ratio), 11 * longer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Simulated]:
    """Times as the counts have them: in all, the units add 24 %."""
    model = layers()
    names = [name for name, _ in model.named_children()]
    cost = slowdown._costs(model, dict(model.named_children()), X)

    class Clock(Simulated):
        adds = {name: 0.24 * cost[name] / sum(cost.values()) for name in names}
        asked: list[frozenset[str]] = []

    monkeypatch.setattr(slowdown, "Timing", Clock)
    return Clock


@pytest.mark.parametrize("limit", [1.01, 1.02, 1.05, 1.10, 1.2])
def test_as_many_units_as_fit_and_not_one_more(clock, limit):
    model = layers()
    report = convert_(model, ICConfig(layers="all", max_slowdown=limit), optimizers=(), example_input=X)
    cheapest = sorted(clock.adds.values())
    fit = max(n for n in range(len(cheapest) + 1) if sum(cheapest[:n]) <= limit - 1 + 1e-9)
    assert len(report.converted) == fit > 0
    assert report.slowdown.ratio.median <= limit
    assert report.slowdown.ratio.median == pytest.approx(1 + sum(clock.adds[name] for name in report.converted))
    assert tuple(report.converted) == report.config.only
    assert [type(m) is ICConv2d for m in model] == [name in report.converted for name, _ in model.named_children()]
    assert report.slowdown.networks == len(clock.asked) <= 14


def test_everything_is_converted_where_everything_fits(clock):
    report = convert_(layers(), ICConfig(layers="all", max_slowdown=1.3), optimizers=(), example_input=X)
    assert len(report.converted) == 24
    assert not report.skipped
    assert len(clock.asked) == 2  # once, and once more for what is told


def test_what_chance_favoured_is_measured_anew(clock):
    clock.noise = 0.02
    for limit in (1.05, 1.10, 1.15):
        report = convert_(layers(), ICConfig(layers="all", max_slowdown=limit), optimizers=(), example_input=X)
        true = 1 + sum(clock.adds[name] for name in report.converted)
        assert limit - 0.05 <= true <= limit + 0.01
        assert len(clock.asked) <= 14
        clock.asked.clear()


def test_a_preset_that_fits_and_has_more_units_is_taken(clock):
    # The counts are wrong: depthwise units, which they have as cheap, take nearly all of the time.
    wide = {name for name, m in layers().named_children() if m.groups > 1}
    clock.adds = {name: 0.05 if name in wide else 0.001 for name in clock.adds}
    report = convert_(layers(), ICConfig(layers="all", max_slowdown=1.04), optimizers=(), example_input=X)
    assert set(report.converted) == clock.adds.keys() - wide


def test_less_than_any_unit_costs_is_refused_and_nothing_is_changed(clock):
    clock.adds = dict.fromkeys(clock.adds, 0.5)
    model = layers()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"no IC unit fits max_slowdown=1.05 in eager.*takes x1.500; allow more"):
        convert_(model, ICConfig(max_slowdown=1.05), optimizers=(), example_input=X)
    assert all(type(m) is nn.Conv2d for m in model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


ENGINES = {"eager": "torch", "training": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=pytest.mark.skipif(not find_spec(p), reason=p)) for e, p in ENGINES.items()]
)
def test_every_engine_measures_whole_networks(engine, monkeypatch):
    monkeypatch.setattr(slowdown, "_ROUNDS", (3, 3))
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    before, state = model(X), torch.get_rng_state()
    config = ICConfig(max_slowdown=50.0, engine=engine, warm_start="gain")
    report = convert_(model, config, optimizers=(), example_input=X)
    assert report.converted == ["0", "3"]
    assert 0.1 < report.slowdown.ratio.low <= report.slowdown.ratio.median <= 50
    assert f"of the basic network's time ({engine}, batch 1, " in str(report)
    torch.testing.assert_close(model(X), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


@pytest.mark.slow
def test_compiled_networks_are_measured_compiled(monkeypatch):
    monkeypatch.setattr(slowdown, "_ROUNDS", (3, 3))
    seen: list[nn.Module] = []
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **options: (seen.append(m), compile(m, **options))[1])
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    report = convert_(model, ICConfig(max_slowdown=50.0, engine="compile"), optimizers=(), example_input=X)
    assert [sum(isinstance(m, ICConv2d) for m in network) for network in seen] == [0, 2, 2]
    assert len(report.converted) == 2


def test_the_choice_is_kept_with_the_checkpoint_and_not_measured_again(clock, tmp_path):
    model = layers()
    report = convert_(model, ICConfig(max_slowdown=1.1), optimizers=(), example_input=X)
    save(model, tmp_path / "a.safetensors")
    clock.asked.clear()
    again = load(tmp_path / "a.safetensors", layers())
    assert [n for n, m in again.named_modules() if isinstance(m, ICConv2d)] == report.converted
    known = ICConfig(**report.config.to_dict())
    assert known == report.config
    assert convert_(layers(), known, optimizers=()).converted == report.converted
    assert not clock.asked


def test_names_alone_choose_too():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Linear(3, 3), nn.Linear(3, 3))
    assert convert_(model, ICConfig(only=("0", "3"), linear=True), optimizers=()).converted == ["0", "3"]
    report = convert_(layers(2), ICConfig(only=("0", "3")), optimizers=())
    assert report.converted == ["0", "3"]
    assert set(report.skipped.values()) == {"config.only doesn't name it"}
    with pytest.raises(ValueError, match="only names stem, which the network has no layer of"):
        convert_(layers(2), ICConfig(only=("0", "stem")), optimizers=())


def test_a_configuration_without_a_budget_reads_as_before():
    assert not {"max_slowdown", "engine", "only"} & ICConfig().to_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_slowdown": 1.0}, "max_slowdown is 1.0; it must be a number above 1"),
        ({"max_slowdown": True}, "max_slowdown is True; it must be a number above 1"),
        ({"engine": "tensorrt"}, "engine is 'tensorrt'; it must be one of eager, compile"),
        ({"engine": "openvino"}, "engine is 'openvino'; it must measure a max_slowdown; give that"),
        ({"only": "conv1"}, "only is 'conv1'; it must be names"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ICConfig(**options)


def test_an_engine_that_cannot_run_the_network_says_so(monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no compiler\nand a page about it")

    monkeypatch.setattr(torch, "compile", lambda network, **options: Broken())
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"compile can't run the network on example_input, .*: no compiler; give"):
        convert_(model, ICConfig(max_slowdown=1.1, engine="compile"), optimizers=(), example_input=X)
    assert type(model[0]) is nn.Conv2d


def test_what_the_network_cannot_take_is_said_before_anything_is_measured(clock):
    config = ICConfig(max_slowdown=1.1)
    with pytest.raises(ValueError, match=r"Sequential can't take example_input, of shape \(1, 3, 6, 6\)"):
        convert_(layers(), config, optimizers=(), example_input=torch.zeros(1, 3, 6, 6))
    with pytest.raises(ValueError, match="measured on a batch, and the model names no input size; give example_input"):
        convert_(layers(), config, optimizers=())
    with pytest.raises(TypeError, match="example_input is a tuple"):
        convert_(layers(), config, optimizers=(), example_input=(X,))
    model = layers()
    convert_(model, optimizers=())
    with pytest.raises(ValueError, match="the model has IC units"):
        convert_(model, config, optimizers=(), example_input=X)
    assert not clock.asked
