"""Calibration: how often the branch fires after it, on what data, and what a call that fails leaves behind."""

import copy
import math

import pytest
import torch
from torch import nn

from convert.test_convert import Block, inputs
from icnets import ICConfig, ICConv2d, convert_, ic_parameters, load, save
from icnets.profile.firing import firing_rates
from icnets.unit.layers import IC_LAYERS

CALIBRATE = ICConfig(warm_start="calibrate", max_change=None)


def branches(model):
    """Modules that are units, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, IC_LAYERS)}


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    parts = (
        output.values() if isinstance(output, dict) else vars(output).values() if hasattr(output, "logits") else output
    )
    return [t for part in parts for t in tensors(part)]


@torch.no_grad()
def change(model, basic, *args):
    """Relative L2 change in float64 of the output that changes most, straight from its definition."""
    pairs = zip(tensors(model(*args)), tensors(basic(*args)), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def state_of(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return state, modes, hooks, [type(m) for m in model.modules()], torch.get_rng_state()


def assert_same_state(model, before):
    state, *facts, rng = before
    now, *own, after = state_of(model)
    assert own == facts
    assert list(now) == list(state)
    assert all(torch.equal(now[k], state[k]) for k in state)
    assert torch.equal(rng, after)


# -- where the branch fires -----------------------------------------------------------------------------------------


def test_it_has_the_papers_form():
    basic, x = Block().eval(), inputs(32)
    model = copy.deepcopy(basic)
    convert_(model, CALIBRATE, calibration_data=[x])
    assert all(unit.gain is None for unit in branches(model).values())
    assert change(model, basic, x) > 0


@pytest.mark.parametrize("bound", [0.01, 0.5])
def test_a_bound_on_the_change_is_refused(bound):
    model, config = Block(), ICConfig(warm_start="calibrate", max_change=bound)
    with pytest.raises(ValueError, match=rf"max_change is {bound}, .*; use warm_start=.gain., .*max_change=None"):
        convert_(model, config, calibration_data=[inputs()])
    assert not list(ic_parameters(model))
    convert_(model, config.without_data())  # as networks that were started so are rebuilt
    assert all(not unit.gain.any() for unit in branches(model).values())


def test_it_survives_save_and_load(tmp_path):
    model, x = Block().eval(), inputs(16)
    convert_(model, CALIBRATE, calibration_data=[x])
    save(model, tmp_path / "ic.safetensors")
    assert torch.equal(load(tmp_path / "ic.safetensors", Block())(x), model(x))


@pytest.mark.parametrize("linear", [False, True])
def test_fires_as_often_as_asked(linear):
    model = Block().eval()
    batches = [inputs(16), (inputs(16), torch.zeros(16))]
    model.head.training = True
    config = ICConfig(warm_start="calibrate", calibration_rate=0.05, linear=linear, max_change=None)
    report = convert_(model, config, calibration_data=batches)
    assert report.config.warm_start == "calibrate"
    assert model.head.training
    assert not model.stem.training
    # The stem sees the very inputs of the calibration: its rate is exact, by b1, since inputs are negative too.
    layer = model.stem
    x = torch.cat([batches[0], batches[1][0]])
    with torch.no_grad():
        branch = layer(x) - nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)
    assert not layer.collision.any()
    rates = (branch > 0).float().mean((0, 2, 3))
    torch.testing.assert_close(rates, torch.full_like(rates, 0.05), atol=0.002, rtol=0)
    # Behind a ReLU it is done by w', inside the paper's form.
    assert model.depthwise.collision.any()
    assert not model.depthwise.inner_bias.any()
    assert all(unit.gain is None for unit in branches(model).values())


def test_a_rarer_branch_changes_less():
    basic, x = Block().eval(), inputs(32)
    errors = []
    for rate in (0.1, 0.01, 0.001):
        model = copy.deepcopy(basic)
        config = ICConfig(warm_start="calibrate", calibration_rate=rate, max_change=None)
        convert_(model, config, calibration_data=[x])
        errors.append(change(model, basic, x))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.3
    assert 0 < errors[2] < 0.01


# -- the data --------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts the samples that pass through."""

    def __init__(self):
        super().__init__()
        self.conv, self.samples = nn.Conv2d(3, 4, 3), 0

    def forward(self, x):
        self.samples += len(x)
        return self.conv(x)


@pytest.mark.parametrize("sizes", [(32,), (16, 16), (5, 1, 7), (1, 1)])
def test_data_are_read_once(sizes):
    read = []

    def batches():
        for n in sizes:
            read.append(n)
            yield torch.randn(n, 3, 5, 5)

    model = Counting()
    convert_(model, CALIBRATE, calibration_data=batches())
    assert read == list(sizes)
    assert model.samples == sum(sizes)


class Keyword(Block):
    def forward(self, x):
        return self.head(self.point(input=self.bn(self.stem(input=x)).relu()).mean((2, 3)))


class Repeated(Block):
    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        for _ in range(3):
            x = self.point(x).relu()
        return self.head(x.mean((2, 3)))


class Grouped(Block):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.point = self.again = nn.Conv2d(8, 12, 3, groups=4, padding="same", padding_mode="circular")
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.point(self.stem(x).relu()).mean((2, 3)))


class Up(Block):
    def __init__(self):
        super().__init__()
        self.point = self.again = nn.ConvTranspose2d(8, 8, 3, stride=2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.point(x, output_size=[2 * x.shape[2] + 1, 2 * x.shape[3] + 2]).mean((2, 3)))


@pytest.mark.parametrize("kind", [Keyword, Repeated, Grouped, Up])
@pytest.mark.parametrize("linear", [False, True])
def test_layers_called_in_other_ways(kind, linear):
    basic = kind().eval()
    model, x = copy.deepcopy(basic), inputs(16)
    config = ICConfig(warm_start="calibrate", linear=linear, max_change=None)
    convert_(model, config, lambda _, n: "depthwise" not in n, calibration_data=[x])
    assert all(unit.collision.any() or unit.inner_bias.any() for unit in branches(model).values())
    assert 0 < firing_rates(model, x)["stem"] < 0.015
    assert 0 < change(model, basic, x) < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    basic = Block().eval().to(dtype)
    model, x = copy.deepcopy(basic), inputs(16).to(dtype)
    convert_(model, CALIBRATE, calibration_data=[x])
    assert 0 < change(model, basic, x) <= 0.1
    assert {p.dtype for _, p in ic_parameters(model)} == {dtype}


# -- what leaves no trace --------------------------------------------------------------------------------------------


class Touchy(Block):
    """Changes its buffers whenever it runs, and draws random numbers."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1, 3, 10, 9))
        self.fails_at = fails_at

    def forward(self, x):
        self.calls += 1
        self.last = x[:1] + torch.rand(())
        if self.fails_at is not None and int(self.calls) >= self.fails_at:
            raise RuntimeError("out of luck")
        return super().forward(x)


@pytest.mark.parametrize("fails_at", [None, 1, 2])
def test_modes_buffers_hooks_and_the_random_state_come_back(fails_at):
    model = Touchy(fails_at)
    model.depthwise.eval()
    model.stem.register_forward_hook(lambda *_: None)
    data = [inputs(8), inputs(8)]
    before = state_of(model)
    if fails_at is None:
        convert_(model, CALIBRATE, calibration_data=data)
        new = dict(ic_parameters(model, remove_duplicate=False))
        state, modes, hooks, _, rng = before
        now = state_of(model)
        assert all(torch.equal(now[0][k], v) for k, v in state.items())
        assert now[0].keys() - state.keys() == new.keys()
        assert (now[1], now[2]) == (modes, hooks)
        assert torch.equal(now[4], rng)
    else:
        with pytest.raises(RuntimeError, match="out of luck"):
            convert_(model, CALIBRATE, calibration_data=data)
        assert_same_state(model, before)


def broken(at):
    x = inputs(4)
    x[1, 0, 0, 0] = at
    return x


def overflowing():
    model = Block()
    nn.init.constant_(model.stem.weight, 3e38)
    return model


@pytest.mark.parametrize(
    ("model", "data", "config", "message"),
    [
        (Block, None, {}, "calibration_data is None; pass a few batches of inputs"),
        (Block, [], {}, "calibration_data has no batches; pass a few"),
        (Block, iter(()), {}, "calibration_data has no batches; pass a few"),
        (Block, ["images"], {}, "a batch of calibration_data is a str; it must be an input tensor"),
        (Block, [{"image": inputs()}], {}, "a batch of calibration_data is a dict; it must be an input tensor"),
        (Block, [inputs(0)], {}, r"batch 0 of calibration_data is empty, of shape \(0, 3, 10, 9\)"),
        (Block, [inputs(4), (inputs(0), 1)], {}, r"batch 1 of calibration_data is empty, of shape \(0, 3, 10, 9\)"),
        (Block, [broken(math.nan)], {}, "layer 'stem' has values that aren't finite on calibration_data"),
        (Block, [inputs(), broken(math.inf)], {}, "layer 'stem' has values that aren't finite on calibration_data"),
        (Block, [torch.zeros(4, *inputs().shape[1:])], {}, "its 4 samples are all the same; .* warm_start=.gain"),
        (Block, [inputs()[:1]] * 2, {}, "its 2 samples are all the same"),
        (Block, [torch.ones_like(inputs()[:1])], {}, "its one sample has one value everywhere"),
        (overflowing, [inputs()], {}, "layer 'stem' has values that aren't finite on calibration_data"),
        (Block, [inputs()], {"inner_bias": False}, "layer 'stem' has negative inputs, where only b1 can calibrate"),
        (Repeated, [inputs()], {}, "calibration_data never reached layer 'depthwise'"),
    ],
)
def test_what_cannot_be_calibrated_says_why_and_changes_nothing(model, data, config, message):
    model = model()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        convert_(model, ICConfig(warm_start="calibrate", max_change=None, **config), calibration_data=data)
    assert not list(ic_parameters(model))
    assert_same_state(model, before)


# -- configurations --------------------------------------------------------------------------------------------------


def test_a_configuration_of_version_1_bounds_nothing():
    old = {"warm_start": "calibrate", "calibration_rate": 0.02, "version": 1}  # as older checkpoints of a training hold
    config = ICConfig(**old)
    assert config.max_change is None
    assert ICConfig(**config.to_dict()) == config
    assert ICConfig(**CALIBRATE.to_dict()) == CALIBRATE
    model = Block().eval()
    convert_(model, config, calibration_data=[inputs(8)])
    assert all(unit.gain is None for unit in branches(model).values())


@pytest.mark.parametrize("warm_start", ["none", "gain", "calibrate"])
def test_the_same_surgery_without_data(warm_start):
    config = ICConfig(warm_start=warm_start, max_change=None)
    calibrated, rebuilt = Block(), Block()
    convert_(calibrated, config, calibration_data=[inputs(8)])
    convert_(rebuilt, config.without_data())
    assert type(rebuilt.stem) is ICConv2d
    rebuilt.load_state_dict(calibrated.state_dict())
    assert torch.equal(rebuilt.eval()(inputs(2) * 0), calibrated.eval()(inputs(2) * 0))
