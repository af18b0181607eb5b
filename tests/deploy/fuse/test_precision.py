"""What is rounding and what is wrong, what is finite, and what a network is called with."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import strategies
from deploy.fuse.networks import random_norm
from icnets import ICConfig, ICConv2d, convert_
from icnets.deploy.fuse import fuse_
from icnets.unit.deployed import FUSED_LAYERS, _FusedConv


class Amplifies(nn.Module):
    """Sines of large numbers: in single precision, rounding alone changes them."""

    def __init__(self, by=3e4, after=lambda net, x: x):
        super().__init__()
        self.conv = strategies.randomise(ICConv2d(3, 4, 3), 0)
        self.norm, self.by, self.after = random_norm(nn.BatchNorm2d(4)), by, after
        self.register_buffer("shift", torch.ones(4, 1, 1))
        self.plain = torch.full((1,), 0.5)  # no buffer

    def forward(self, x):
        return self.after(self, torch.sin(self.by * self.norm(self.conv(x))) * self.shift + self.plain)


def state(model):
    own = {n: dict(m.__dict__) for n, m in model.named_modules()}
    tensors = {n: (m, type(m), dict(m._parameters), dict(m._buffers)) for n, m in model.named_modules()}
    values = {k: v.clone() for k, v in model.state_dict().items()}
    return own, tensors, values


def assert_untouched(model, before):
    _, tensors, values = before
    for name, module in model.named_modules():
        old, kind, parameters, buffers = tensors[name]
        assert module is old
        assert type(module) is kind
        assert module._parameters.keys() == parameters.keys()
        assert all(module._parameters[k] is p for k, p in parameters.items())
        assert all(module._buffers[k] is b for k, b in buffers.items())
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    now = model.state_dict()
    assert now.keys() == values.keys()
    assert all(torch.equal(v, now[k]) and v.dtype == now[k].dtype for k, v in values.items())


def test_a_network_that_amplifies_rounding_is_fused_in_double_precision():
    model, x = Amplifies().eval(), torch.randn(2, 3, 8, 8)
    before = state(model)
    with pytest.raises(RuntimeError, match=r"amplify rounding \(then use a wider dtype\)\?"):
        fuse_(model, x)
    assert_untouched(model, before)
    report = fuse_(model.double(), x.double())
    assert report.fused == ["conv"]
    assert report.folded == {"norm": "conv"}
    assert report.max_relative_error < 1e-9


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda net, x: x if isinstance(net.norm, nn.BatchNorm2d) else x + 0.01, "differ by 0.0"),
        (lambda net, x: x + torch.rand_like(x), "is its output random"),
        (lambda net, x: x if isinstance(net.norm, nn.BatchNorm2d) else x / 0, "differ by inf"),
        (lambda net, x: x if isinstance(net.norm, nn.BatchNorm2d) else x[1:], "differ by inf"),
    ],
)
def test_a_network_that_is_wrong_is_refused_and_untouched(after, message):
    model = Amplifies(by=1, after=after).eval()
    before = state(model)
    with pytest.raises(RuntimeError, match=message):
        fuse_(model, torch.randn(2, 3, 8, 8))
    assert_untouched(model, before)


def test_a_wrong_kernel_is_refused(monkeypatch):
    model = Amplifies(by=1).eval()
    before, forward = state(model), _FusedConv.forward
    monkeypatch.setattr(
        _FusedConv, "forward", lambda self, x: forward(self, x) * (1.01 if x.dtype == torch.float32 else 1)
    )
    with pytest.raises(RuntimeError, match=r"outputs differ by 0.0.*left as it was"):
        fuse_(model, torch.randn(2, 3, 8, 8))
    assert_untouched(model, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("call", [1, 3, 4, 5])  # of the five; the second may fail
def test_whatever_is_raised_whenever_the_model_is_as_it_was(error, call):
    calls = []

    def interrupt(net, x):
        calls.append(net)
        if len(calls) == call:
            raise error
        return x

    model = Amplifies(after=interrupt).eval()
    before = state(model)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        fuse_(model, torch.randn(2, 3, 8, 8))
    assert caught.type is error or type(caught.value.__cause__) is error
    assert_untouched(model, before)


def spoil(name, value):
    def change(model):
        dict(model.named_parameters(), **dict(model.named_buffers()))[name].data.view(-1)[0] = value
        return model

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil("0.weight", torch.nan),
        spoil("0.bias", torch.nan),
        spoil("1.running_var", -1.0),
        spoil("1.running_mean", torch.nan),
        lambda model: spoil("0.collision", torch.nan)(convert_(model) and model),
    ],
)
def test_outputs_that_are_not_finite_before_are_not_blamed_on_randomness(change):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    change(model)
    kinds = [type(m) for m in model]
    with pytest.raises(ValueError, match="not finite, before anything is fused"):
        fuse_(model, torch.randn(2, 3, 8, 8))
    assert [type(m) for m in model] == kinds


class Masks(nn.Module):
    def forward(self, x):
        return x.masked_fill(torch.arange(x.shape[-1]) > 2, -torch.inf), x.log()


def test_masked_outputs_and_noise_outside_of_a_domain_are_compared_where_they_are_finite():
    positive = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Masks()).eval()
    convert_(positive)
    with torch.no_grad():
        positive[0].weight.abs_()
    x = torch.rand(2, 3, 8, 8)
    expected = positive(x)
    assert fuse_(positive, x).max_relative_error < 1e-5
    torch.testing.assert_close(positive(x), expected, rtol=1e-4, atol=1e-4)

    class Images(nn.Sequential):
        def forward(self, x):
            assert x.min() >= 0, "no image"
            return super().forward(x)

    assert fuse_(Images(ICConv2d(3, 4, 3)).eval(), x).fused == ["0"]


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = strategies.randomise(ICConv2d(3, 4, 3), 0)

    def forward(self, image, *more, scale=1.0, images=()):
        return self.conv(image).mul_(scale), *[self.conv(i.add_(1)) for i in images]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, None],
        lambda x: {"image": x},
        lambda x: {"image": x, "scale": 2.0, "images": [x.clone(), x.clone()]},
    ],
)
def test_the_example_in_every_form_stays_as_it_was(make):
    model, x = Keywords().eval(), torch.randn(2, 3, 8, 8)
    example, before = make(x), copy.deepcopy(make(x))
    report = fuse_(model, example)
    assert report.fused == ["conv"]
    assert str(example) == str(before)


def test_an_example_that_fails_says_what_it_is():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\) \(torch.float64, cpu\)"):
        fuse_(Keywords().eval(), torch.randn(2, 3, 8, 8).double())
    with pytest.raises(ValueError, match=r"\(torch.float32, meta\)"):
        fuse_(Keywords().eval(), torch.randn(2, 3, 8, 8, device="meta"))
    with pytest.raises(ValueError, match="the model fails on an example input"):
        fuse_(Keywords().eval(), {1})


def test_in_any_context():
    for context in (torch.device("meta"), torch.inference_mode(), torch.enable_grad()):
        norm = timm.layers.BatchNormAct2d(6)
        model = nn.Sequential(strategies.randomise(ICConv2d(3, 4, 3), 0), nn.Conv2d(4, 6, 1), random_norm(norm)).eval()
        x = torch.randn(2, 3, 8, 8)
        expected = model(x).detach()
        with context:
            report = fuse_(model, x)
        assert report.fused == ["0"]
        assert report.folded == {"2": "1"}
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


class Halves(nn.Module):
    def forward(self, v):
        return v / 2


# What a hook or a parametrisation computes: (what is done to the layer, which of its tensors, whether it can be fused).
COMPUTED = {
    "prune weight": (lambda c: prune.l1_unstructured(c, "weight", 0.5), False),
    "prune bias": (lambda c: prune.l1_unstructured(c, "bias", 0.5), False),
    "prune channels": (lambda c: prune.ln_structured(c, "weight", 0.5, 2, 0), False),
    "old weight norm": (lambda c: torch.nn.utils.weight_norm(c), False),
    "old spectral norm": (lambda c: torch.nn.utils.spectral_norm(c), False),
    "weight norm": (parametrizations.weight_norm, True),
    "orthogonal": (parametrizations.orthogonal, True),
    "bias": (lambda c: parametrize.register_parametrization(c, "bias", Halves()), True),
    "two": (
        lambda c: parametrize.register_parametrization(parametrizations.spectral_norm(c), "bias", Halves()),
        True,
    ),
}
VECTORS = ("collision", "inner_bias", "gain")
OF_UNITS = {f"prune {v}": (lambda c, v=v: prune.l1_unstructured(c, v, 0.5), False) for v in VECTORS}
OF_UNITS |= {v: (lambda c, v=v: parametrize.register_parametrization(c, v, Halves()), True) for v in VECTORS}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm. is deprecated")
@pytest.mark.parametrize(("kind", "ic"), [*((k, False) for k in COMPUTED), *((k, True) for k in COMPUTED | OF_UNITS)])
def test_computed_tensors_are_right_or_left_with_the_reason(kind, ic):
    change, can = (COMPUTED | OF_UNITS)[kind]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), random_norm(nn.BatchNorm2d(4)))
    if ic:
        convert_(model, ICConfig(warm_start="gain"))
        strategies.randomise(model[0], 0)
    change(model[0])
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    report = fuse_(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert report.folded == ({"1": "0"} if can else {})
    assert report.fused == (["0"] if can and ic else [])
    assert isinstance(model[0], FUSED_LAYERS) == (can and ic)
    if not can:
        assert "is computed before each call, as by pruning: make it permanent first" in report.skipped["1"]
