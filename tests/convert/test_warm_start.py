"""Calibration: what it promises of the network's function, on what data, and what a call that fails leaves behind."""

import copy
import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert.test_convert import Block, inputs
from icnets import ICConfig, ICConv2d, convert_, ic_parameters, load, save
from icnets.unit.layers import IC_LAYERS

CALIBRATE = ICConfig(layers="all", warm_start="calibrate")


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


# -- the function is kept --------------------------------------------------------------------------------------------


class Headed(nn.Module):
    """Layers that amplify: no norm, negative inputs, several in a row; its outputs in the form that is asked for."""

    def __init__(self, form="tuple"):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, 12, 3, padding=1), nn.PReLU()) for c in (3, 12, 12, 12)))
        self.boxes, self.classes = nn.Conv2d(12, 4, 1), nn.Linear(12, 7)
        self.form = form

    def forward(self, x):
        x = self.body(x) * 3
        boxes, logits = self.boxes(x), self.classes(x.mean((2, 3)))
        if self.form == "masked":
            return logits.index_fill(1, torch.tensor([2]), -math.inf)
        return {
            "tensor": logits,
            "tuple": (boxes, logits),
            "dict": {"boxes": [boxes], "ids": torch.arange(len(x)), "deep": {"logits": logits}},
        }[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_the_whole_network_keeps_its_function(form):
    basic = Headed(form).eval()
    model, seen, unseen = copy.deepcopy(basic), torch.randn(32, 3, 12, 12), torch.randn(64, 3, 12, 12)
    report = convert_(model, CALIBRATE, calibration_data=[seen])
    found = report.calibration
    assert found.change <= 0.01
    assert change(model, basic, unseen) <= 0.01
    assert found.agreement == 1
    assert 0.005 < found.rate < 0.03
    assert 0 < found.gain < 1
    assert (found.samples, found.held_back) == (16, True)
    assert all((unit.gain == found.gain).all() for unit in branches(model).values())
    assert f"output changed by {found.change:.2%}" in str(report)
    sum(t.square().sum() for t in tensors(model(seen)) if t.is_floating_point()).backward()
    assert all(
        p.grad is not None and p.grad.any() for _, p in ic_parameters(model) if "boxes" not in _ or form != "tensor"
    )


def test_the_figures_are_those_of_the_data_held_back():
    basic = Headed("tensor").eval()
    model, x = copy.deepcopy(basic), torch.randn(32, 3, 12, 12)
    found = convert_(model, CALIBRATE, calibration_data=[x]).calibration
    held_back = x[1::2]
    assert found.change == pytest.approx(change(model, basic, held_back), rel=1e-3)
    fired = [0.0] * len(branches(model))

    def note(i, unit):
        def hook(module, args, output):
            y = F.conv2d(args[0], unit.weight, None, unit.stride, unit.padding)
            fired[i] = float((y + unit.inner_bias.view(-1, 1, 1) > 0).double().mean())

        return hook

    for i, unit in enumerate(branches(model).values()):
        unit.register_forward_hook(note(i, unit))
    model(held_back)
    assert found.rate == pytest.approx(sum(fired) / len(fired), rel=0.02)


@pytest.mark.parametrize("limit", [0.03, 0.003, 0.0003])
def test_a_larger_bound_gives_a_larger_gain(limit):
    basic, x = Headed("tensor").eval(), torch.randn(32, 3, 12, 12)
    gains = []
    for max_change in (limit, limit / 3):
        model = copy.deepcopy(basic)
        found = convert_(
            model, ICConfig(layers="all", warm_start="calibrate", max_change=max_change), calibration_data=[x]
        ).calibration
        gains.append(found.gain)
        assert found.change <= max_change / 5  # the rest is for other data
    assert gains[0] > 2 * gains[1]


def test_without_a_bound_it_has_the_papers_form():
    basic, x = Headed("tensor").eval(), torch.randn(32, 3, 12, 12)
    model = copy.deepcopy(basic)
    found = convert_(
        model, ICConfig(layers="all", warm_start="calibrate", max_change=None), calibration_data=[x]
    ).calibration
    assert found.gain == 1
    assert all(unit.gain is None for unit in branches(model).values())
    assert found.change == pytest.approx(change(model, basic, x[1::2]), rel=1e-3)
    assert found.change > 0.01  # which is why there is a bound


def test_a_network_that_hardly_changes_starts_at_gain_1():
    model = nn.Conv2d(3, 4, 3)
    found = convert_(
        model,
        ICConfig(layers="all", warm_start="calibrate", max_change=20.0),
        calibration_data=[torch.randn(8, 3, 9, 9)],
    )
    assert found.calibration.gain == 1
    assert (model.gain == 1).all()


def test_masked_classes_stay_masked_and_are_not_compared():
    basic = Headed("masked").eval()
    model, x = copy.deepcopy(basic), torch.randn(16, 3, 12, 12)
    found = convert_(model, CALIBRATE, calibration_data=[x], filter_fn=lambda _, name: name != "boxes").calibration
    assert 0 < found.change <= 0.01
    assert (model(x)[:, 2] == -math.inf).all()


def test_equal_largest_outputs_count_as_kept():
    class Tied(Headed):
        def forward(self, x):
            return super().forward(x)[:, :3].repeat(1, 2)

    found = convert_(Tied("tensor").eval(), CALIBRATE, calibration_data=[torch.randn(16, 3, 8, 8)], filter_fn=no_boxes)
    assert found.calibration.agreement == 1


def no_boxes(_, name):
    return name != "boxes"


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
    config = ICConfig(layers="all", warm_start="calibrate", calibration_rate=0.05, linear=linear, max_change=None)
    report = convert_(model, config, calibration_data=batches)
    assert report.config.warm_start == "calibrate"
    assert model.head.training
    assert not model.stem.training
    # The stem sees the very inputs of the calibration: its rate is exact, by b1, since inputs are negative too.
    layer = model.stem
    with torch.no_grad():
        branch = layer(batches[0]) - nn.Conv2d._conv_forward(layer, batches[0], layer.weight, layer.bias)
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
        config = ICConfig(layers="all", warm_start="calibrate", calibration_rate=rate, max_change=None)
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


@pytest.mark.parametrize(
    ("sizes", "held_back"),
    [((32,), 16), ((16, 16), 16), ((8, 8, 8, 8), 16), ((5, 1, 7), 1), ((2,), 1), ((3, 300, 3, 300), 300), ((1, 1), 1)],
)
def test_every_second_batch_or_sample_is_held_back_and_data_are_read_once(sizes, held_back):
    read = []

    def batches():
        for n in sizes:
            read.append(n)
            yield torch.randn(n, 3, 5, 5)

    model = Counting()
    found = convert_(model, CALIBRATE, calibration_data=batches()).calibration
    assert read == list(sizes)
    assert (found.samples, found.held_back) == (held_back, True)
    passes, rest = divmod(model.samples - (sum(sizes) - held_back), held_back)
    assert rest == 0
    assert passes <= 14  # of which one is the basic network's and one the last


def test_one_sample_says_that_nothing_was_held_back():
    report = convert_(Block(), CALIBRATE, calibration_data=[inputs(1)])
    assert not report.calibration.held_back
    assert "on 1 samples that it was calibrated on, since nothing could be held back" in str(report)
    assert report.calibration.change <= 0.005


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
    config = ICConfig(layers="all", warm_start="calibrate", linear=linear)
    found = convert_(model, config, lambda _, n: "depthwise" not in n, calibration_data=[x]).calibration
    assert found.change == pytest.approx(change(model, basic, x[1::2]), rel=0.02)
    assert found.change <= 0.005
    assert found.gain > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    basic = Block().eval().to(dtype)
    model, x = copy.deepcopy(basic), inputs(16).to(dtype)
    found = convert_(
        model, ICConfig(layers="all", warm_start="calibrate", max_change=0.05), calibration_data=[x]
    ).calibration
    assert change(model, basic, x) <= 0.05
    assert found.gain > 0
    assert {p.dtype for _, p in ic_parameters(model)} == {dtype}


def test_random_networks_are_compared_with_the_same_draws():
    class Noisy(Block):
        def forward(self, x):
            return super().forward(x) + torch.rand(len(x), 5)

    found = convert_(Noisy().eval(), CALIBRATE, calibration_data=[inputs(16)]).calibration
    assert found.change <= 0.005
    assert found.gain > 1e-3


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


@pytest.mark.parametrize("fails_at", [None, 1, 2, 3])
def test_modes_buffers_hooks_and_the_random_state_come_back(fails_at):
    model = Touchy(fails_at)
    model.depthwise.eval()
    model.stem.register_forward_hook(lambda *_: None)
    x = inputs(8)
    before = state_of(model)
    if fails_at is None:
        convert_(model, CALIBRATE, calibration_data=[x])
        new = dict(ic_parameters(model, remove_duplicate=False))
        state, modes, hooks, _, rng = before
        now = state_of(model)
        assert all(torch.equal(now[0][k], v) for k, v in state.items())
        assert now[0].keys() - state.keys() == new.keys()
        assert (now[1], now[2]) == (modes, hooks)
        assert torch.equal(now[4], rng)
    else:
        with pytest.raises(RuntimeError, match="out of luck"):
            convert_(model, CALIBRATE, calibration_data=[x])
        assert_same_state(model, before)


class Returns(Block):
    """Returns what ``answer`` makes of the logits."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(super().forward(x))


class Restless(Block):
    def __init__(self):
        super().__init__()
        self.count = count()

    def forward(self, x):
        return super().forward(x) + next(self.count)


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
        (Block, [broken(math.nan)], {}, "the network puts out NaN on calibration_data"),
        (Block, [inputs(), broken(math.inf)], {}, "the network puts out NaN on calibration_data"),
        (Block, [torch.zeros(4, *inputs().shape[1:])], {}, "its 4 samples are all the same; .* warm_start=.gain"),
        (Block, [inputs()[:1]] * 2, {}, "its 2 samples are all the same"),
        (Block, [torch.ones_like(inputs()[:1])], {}, "its one sample has one value everywhere"),
        (overflowing, [inputs()], {}, "layer 'stem' has values that aren't finite on calibration_data"),
        (Block, [inputs()], {"inner_bias": False}, "layer 'stem' has negative inputs, where only b1 can calibrate"),
        (Repeated, [inputs()], {}, "calibration_data never reached layer 'depthwise'"),
        (lambda: Returns(lambda z: z * math.nan), [inputs()], {}, "the network puts out NaN on calibration_data"),
        (lambda: Returns(lambda z: z * 0), [inputs()], {}, "output is zero on calibration_data.*warm_start=.gain"),
        (
            lambda: Returns(lambda z: z.argmax(1)),
            [inputs()],
            {},
            "no floating-point tensor to compare; use warm_start=",
        ),
        (lambda: Returns(lambda z: SimpleNamespace(z=z)), [inputs()], {}, "no floating-point tensor to compare"),
        # Whatever the gain is, it is never the same twice.
        (Restless, [inputs(8)], {}, "no gain keeps the change .* max_change=0.01"),
    ],
)
def test_what_cannot_be_calibrated_says_why_and_changes_nothing(model, data, config, message):
    model = model()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        convert_(model, ICConfig(layers="all", warm_start="calibrate", **config), calibration_data=data)
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


@pytest.mark.parametrize("max_change", [0.01, None])
@pytest.mark.parametrize("warm_start", ["none", "gain", "calibrate"])
def test_the_same_surgery_without_data(warm_start, max_change):
    config = ICConfig(layers="all", warm_start=warm_start, max_change=max_change)
    calibrated, rebuilt = Block(), Block()
    convert_(calibrated, config, calibration_data=[inputs(8)])
    convert_(rebuilt, config.without_data())
    assert type(rebuilt.stem) is ICConv2d
    rebuilt.load_state_dict(calibrated.state_dict())
    assert torch.equal(rebuilt.eval()(inputs(2) * 0), calibrated.eval()(inputs(2) * 0))
