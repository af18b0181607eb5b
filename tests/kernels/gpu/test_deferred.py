"""Units whose batch norm, shortcut and ReLU take the collision along, against the formula in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import ICConv1d, ICConv2d, ICConv3d
from icnets.kernels import eager, gpu
from icnets.kernels.gpu import deferred
from strategies import randomise


class Block(nn.Module):
    """A bottleneck as torchvision and timm write it, with whatever each does differently."""

    def __init__(self, groups=1, inplace=True, iadd=True, projected=False, gain=None):
        super().__init__()
        options = {"bias": False, "gain": gain}
        self.conv1, self.bn1 = ICConv2d(6, 8, 1, **options), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = ICConv2d(8, 8, 3, 1, 1, groups=groups, **options), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = ICConv2d(8, 6, 1, **options), nn.BatchNorm2d(6)
        self.relu, self.iadd = nn.ReLU(inplace=inplace), iadd
        self.down = nn.Sequential(ICConv2d(6, 6, 1, **options), nn.BatchNorm2d(6)) if projected else nn.Identity()

    def forward(self, x):
        identity = self.down(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.iadd:
            x += identity
        else:
            x = identity + x
        return self.relu(x)


@pytest.fixture
def launched(monkeypatch):
    """Names of the passes over the activations, in their order."""
    names = []

    def noting(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: names.append(name) or original(*a, **k))

    for name in ("statistics", "forward", "backward", "collide_", "collide_backward"):
        noting(deferred, name)
    return names


def prepared(model, device, seed=1):
    model = randomise(model, seed)
    for name, p in model.named_parameters():
        if name.endswith("gain"):
            p.data.abs_()
    return model.to(device).to(memory_format=torch.channels_last)


def images(device, shape=(3, 6, 5, 4)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def outcome(model, x):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = model(x)
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(["x", *names], torch.autograd.grad(loss, [x, *parameters]), strict=True))
    return {"out": out, **gradients, **dict(model.named_buffers())}


def exact(model, x, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(eager, "_ENABLED", False)
        return outcome(copy.deepcopy(model).double(), x.double())


def assert_same(found, expected, tolerance=1e-4):
    for name, value in expected.items():
        size = max(value.abs().max().item(), 1)
        torch.testing.assert_close(found[name].double(), value.double(), rtol=0, atol=tolerance * size, msg=name)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize(("inplace", "iadd"), [(True, True), (False, False)])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("gain", [None, 0.5])
def test_a_bottleneck(device, monkeypatch, launched, groups, inplace, iadd, projected, gain):
    model, x = prepared(Block(groups, inplace, iadd, projected, gain), device), images(device)
    expected = exact(model, x, monkeypatch)
    assert_same(outcome(model, x), expected)
    units = 4 if projected else 3
    assert launched.count("statistics") == launched.count("forward") == launched.count("backward") == units
    assert "collide_" not in launched
    assert launched.index("backward") == 2 * units


def relative_error(found, expected):
    """In the mean over tensors that are more than rounding."""
    known = {name: v for name, v in expected.items() if v.is_floating_point() and v.norm() > 1e-3}
    return sum(((found[n].double() - v).norm() / v.norm()).item() for n, v in known.items()) / len(known)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, monkeypatch, launched, dtype):
    ours, usual = 0.0, 0.0
    for seed in range(8):  # single values differ where one of the two rounds across a bend
        model, x = prepared(Block(), device, seed).to(dtype), images(device).to(dtype)
        with monkeypatch.context() as patch:
            patch.setattr(eager, "_ENABLED", False)
            expected = outcome(copy.deepcopy(model).double(), x.double())
            usual += relative_error(outcome(copy.deepcopy(model), x), expected)
        ours += relative_error(outcome(model, x), expected)
    assert launched.count("forward") == 8 * 3
    assert ours <= 1.5 * usual


def test_sums_come_from_the_pass_that_makes_the_input(device, monkeypatch):
    model, x = prepared(Block(), device), images(device)
    summed, original = [], eager.channel_sum
    monkeypatch.setattr(eager, "channel_sum", lambda x, *a: summed.append(x.size(1)) or original(x, *a))
    outcome(model, x)
    assert summed == [6, 1, 1]  # the block's input, and then maps that are sums already
    x = nn.functional.relu(model.bn1(model.conv1(images(device).requires_grad_())))
    assert gpu.channel_sums(x) is not None
    torch.testing.assert_close(gpu.channel_sums(x), x.sum(1, keepdim=True))
    x.mul_(2)
    assert gpu.channel_sums(x) is None


class Read(nn.Module):
    """A unit, a norm, and ``between`` and ``behind`` them what the kernels don't take along."""

    def __init__(self, between, behind, layer=ICConv2d, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn, self.between, self.behind = layer(6, 8, 3, padding=1), norm(8), between, behind

    def forward(self, x):
        return self.behind(self.bn(self.between(self.conv(x))))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, d):
        return 2 * d * ctx.saved_tensors[0]


def overwritten(x):
    x.relu_()
    return x


def added_to(x):
    other = x
    other += 1
    return x * 2


READERS = {
    "silu": F.silu,
    "a slice": lambda x: x[:, 1:, ::2],
    "itself": lambda x: x + x,
    "a number": lambda x: x + 1,
    "another type": lambda x: x + torch.ones_like(x, dtype=torch.float16),
    "a broadcast": lambda x: (x + torch.ones(8, 1, 1, device=x.device)).relu(),
    "alpha": lambda x: torch.add(x, torch.ones_like(x), alpha=2),
    "a function": Square.apply,
    "ignored result": overwritten,
    "an alias": added_to,
    "two readers": lambda x: x.relu() + x.tanh(),
    "copies": lambda x: torch.cat([x, x.detach().clone()]),
    "double": lambda x: x.double().to(x.dtype),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("where", ["between", "behind"])
def test_whatever_else_reads_it_gets_the_plain_tensor(device, monkeypatch, reader, where):
    class Reader(nn.Module):
        def forward(self, x):
            y = READERS[reader](x)
            return y if where == "behind" or y.size(1) == 8 else F.pad(y, (0, 0, 0, 0, 0, 8 - y.size(1)))

    around = {"between": nn.Identity(), "behind": nn.Identity(), where: Reader()}
    model, x = prepared(Read(**around), device), images(device)
    expected = exact(model, x, monkeypatch)
    assert_same(outcome(copy.deepcopy(model), x), expected)
    assert_same(outcome(model, x), expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("reader", [nn.Identity(), nn.Tanh()])
def test_any_gain_on_a_gpu_without_a_look_at_it(device, monkeypatch, launched, channels_last, reader):
    layer = lambda *a, **k: ICConv2d(*a, **k, gain=0.5)  # noqa: E731
    model, x = prepared(Read(reader, nn.ReLU(), layer), device), images(device)
    model.conv.gain.data = torch.linspace(-3, 3, 8, device=device)
    if not channels_last:
        model, x = model.to(memory_format=torch.contiguous_format), x.contiguous()
    expected = exact(model, x, monkeypatch)
    assert_same(outcome(copy.deepcopy(model), x), expected)
    assert_same(outcome(model, x), expected)
    norms = channels_last and isinstance(reader, nn.Identity)
    assert launched.count("statistics") == 2 * norms
    assert launched.count("collide_backward") == 2 * (not norms)


@pytest.mark.parametrize("overwrite", [torch.relu_, torch.tanh_, lambda x: x.add_(torch.ones_like(x))])
def test_an_overwritten_tensor_in_a_function_is_refused_not_wrong(device, overwrite):
    def careless(x):
        overwrite(x)
        return Square.apply(x)

    model = prepared(Read(nn.Identity(), nn.Identity()), device)
    out = careless(model(images(device)))
    with pytest.raises(RuntimeError, match=r"overwritten in place and then handed to.*ICNETS_DEFER=0"):
        out.sum().backward()


@pytest.mark.parametrize("layer", [ICConv1d, ICConv3d])
def test_other_dimensions(device, monkeypatch, layer):
    norm = nn.BatchNorm1d if layer is ICConv1d else nn.BatchNorm3d
    model = randomise(Read(nn.Identity(), nn.ReLU(), layer, norm), 1).to(device)
    x = images(device, (3, 6, 5) if layer is ICConv1d else (2, 6, 3, 4, 2))
    expected = exact(model, x, monkeypatch)
    assert_same(outcome(model, x), expected)


def test_second_derivatives(device, monkeypatch):
    model, x = prepared(Block(), device), images(device)

    def penalty(model, x):
        x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return dict(enumerate(torch.autograd.grad(g.square().sum(), [x, *model.parameters()])))

    found = penalty(copy.deepcopy(model), x)
    monkeypatch.setattr(eager, "_ENABLED", False)
    assert_same(found, penalty(model.double(), x.double()), 1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints(device, monkeypatch, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Block):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    model, x = prepared(Checkpointed(), device), images(device)
    x = x.requires_grad_()
    model(x).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    monkeypatch.setattr(eager, "_ENABLED", False)
    plain = prepared(Block(), device).double()
    plain(x.double()).square().sum().backward()
    assert_same(found, {n: p.grad for n, p in plain.named_parameters()}, 1e-3)


def test_a_unit_that_no_norm_reads_is_deferred_once(device, launched):
    layer = prepared(ICConv2d(6, 8, 3), device)
    for times in (1, 1):
        layer(images(device)).sum().backward()
        assert launched.count("collide_backward") == times


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_kinds_of_batch_norm(device, monkeypatch, launched, options):
    model = prepared(Read(nn.Identity(), nn.ReLU(), norm=lambda c: nn.BatchNorm2d(c, **options)), device)
    expected = exact(model, images(device), monkeypatch)
    assert_same(outcome(model, images(device)), expected)
    assert "statistics" in launched


def test_evaluation_and_frozen_norms_are_what_they_were(device, monkeypatch, launched):
    model, x = prepared(Block(), device), images(device)
    model(x)  # for the statistics
    launched.clear()
    model.eval()
    assert_same(outcome(model, x), exact(model, x, monkeypatch))  # nothing of it changes
    with torch.no_grad():
        assert type(model.conv1(x)) is torch.Tensor
    assert "statistics" not in launched


def test_one_value_per_channel_is_refused_as_ever(device):
    model = prepared(Read(nn.Identity(), nn.ReLU()), device)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(images(device, (1, 6, 1, 1)))
