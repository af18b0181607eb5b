import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from icnets import ICConfig, ICConv1d, ICConv2d, convert_, ic_parameters, load_basic_state_dict, revert_

ALL = ICConfig(layers="all")


class Block(nn.Module):
    """A residual block with what networks do: a 1x1, a depthwise conv, a shared module, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1, bias=False)
        self.again = self.point  # shared
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x + self.again(self.point(self.depthwise(x).relu()).relu())
        return self.head(x.mean((2, 3)))


def inputs(n=4):
    return torch.randn(n, 3, 10, 9)


def test_converts_every_convolution():
    model = Block()
    before = sum(p.numel() for p in model.parameters())
    report = convert_(model, ALL)
    assert report.converted == ["stem", "depthwise", "point"]  # the shared module once, under its first name
    assert report.skipped == {}
    assert model.again is model.point
    assert type(model.head) is nn.Linear
    assert (report.parameters_before, report.parameters_after) == (before, before + 3 * 16)
    assert "converted 3 layers" in str(report)
    assert {n for n, _ in ic_parameters(model)} == {
        f"{m}.{p}" for m in report.converted for p in ("collision", "inner_bias")
    }


@pytest.mark.parametrize(
    ("config", "converted", "skipped"),
    [
        (
            ICConfig(layers="auto"),
            ["stem", "point"],
            {"depthwise": "s would cost as much as its 1 inputs a group (layers='auto')"},
        ),
        (ICConfig(layers="kxk"), ["stem", "depthwise"], {"point": "its kernel is 1 (layers='kxk')"}),
        (ICConfig(layers="no-stem"), ["depthwise", "point"], {"stem": "it is the stem (layers='no-stem')"}),
        (ICConfig(layers="all", linear=True), ["stem", "depthwise", "point", "head"], {}),
    ],
)
def test_presets(config, converted, skipped):
    report = convert_(Block(), config)
    assert report.converted == converted
    assert report.skipped == skipped


def test_filter_fn_chooses_and_is_reported():
    report = convert_(Block(), ALL, filter_fn=lambda module, name: module.groups == 1 and name != "stem")
    assert report.converted == ["point"]
    assert report.skipped == {"stem": "filter_fn said no", "depthwise": "filter_fn said no"}
    assert "skipped, filter_fn said no: stem, depthwise" in str(report)


def test_keeps_everything_else():
    model = Block().to(torch.float64).to(memory_format=torch.channels_last).eval()
    model.bn.train()
    model.stem.weight.requires_grad_(False)
    calls = []
    model.stem.register_forward_hook(lambda *a: calls.append("hook"))
    model.stem.note = "mine"
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    convert_(model, ALL)
    assert dict(model.named_modules()) == modules  # the very objects
    assert all(dict(model.named_parameters())[k] is p for k, p in parameters.items())
    assert not model.stem.training
    assert model.bn.training
    assert model.stem.note == "mine"
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.stem.collision.requires_grad
    assert model.point.collision.requires_grad
    assert all(p.dtype == torch.float64 for p in model.parameters())
    model(inputs().double())
    assert calls == ["hook"]


def test_converting_twice_changes_nothing():
    model = Block()
    convert_(model, ALL)
    state = copy.deepcopy(model.state_dict())
    report = convert_(model, ICConfig(warm_start="gain"))
    assert report.converted == []
    assert set(report.skipped.values()) == {"already an IC unit"}
    assert report.parameters_before == report.parameters_after
    assert model.state_dict().keys() == state.keys()


def test_a_single_convolution_converts():
    conv = nn.Conv1d(2, 3, 3)
    assert convert_(conv).converted == [""]
    assert isinstance(conv, ICConv1d)
    assert [n for n, _ in ic_parameters(conv)] == ["collision", "inner_bias"]
    assert revert_(conv) == [""]
    assert type(conv) is nn.Conv1d


def test_revert_gives_the_basic_network_back():
    model = Block().eval()
    x, state = inputs(), copy.deepcopy(model.state_dict())
    y = model(x)
    convert_(model, ICConfig(layers="all", linear=True))
    assert not torch.equal(model(x), y)
    assert revert_(model) == ["stem", "depthwise", "point", "head"]
    assert torch.equal(model(x), y)
    assert model.state_dict().keys() == state.keys()
    assert type(model.stem) is nn.Conv2d
    assert "collision_scale" not in model.stem.__dict__
    assert convert_(model, ALL).converted == ["stem", "depthwise", "point"]


# -- what is left alone, and why -------------------------------------------------------------------------------------


class OnlyNamed(nn.Conv2d):
    """A subclass without behaviour of its own."""

    def __init__(self, c):
        super().__init__(c, c, 3, padding=1)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_subclass_without_behaviour_converts_and_reverts_to_itself():
    model = nn.Sequential(OnlyNamed(3))
    assert convert_(model).converted == ["0"]
    assert isinstance(model[0], ICConv2d)
    revert_(model)
    assert type(model[0]) is OnlyNamed


def replaced_forward():
    conv = nn.Conv2d(3, 3, 1)
    conv.forward = lambda x: x
    return conv


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: OwnForward(3, 3, 1),
            "OwnForward has behaviour of its own (forward): it changes the convolution's output",
        ),
        (lambda: nn.LazyConv2d(3, 1), "lazy: run one batch through the model first"),
        (lambda: nn.Conv2d(3, 3, 1, dtype=torch.complex64), "complex weight"),
        (replaced_forward, "its forward was replaced on the instance"),
    ],
)
def test_skipped_with_the_reason(make, reason):
    model = nn.Sequential(make(), nn.Conv2d(3, 3, 1))
    kind = type(model[0])
    report = convert_(model)
    assert report.converted == ["1"]
    assert report.skipped == {"0": reason}
    assert type(model[0]) is kind


def test_quantised_convolutions_are_skipped():
    class Conv2d(nn.Module):
        __module__ = "torch.ao.nn.quantized.modules.conv"

    assert convert_(nn.Sequential(Conv2d())).skipped == {"0": "quantised"}


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "wrapped by DataParallel; convert its .module first, then wrap it"),
        (lambda m: nn.Sequential(nn.DataParallel(m)), "wrapped by DataParallel at '0'"),
        (torch.compile, r"compiled \(OptimizedModule\); convert it first, then compile it"),
        (torch.fx.symbolic_trace, "traced graph"),
        (torch.jit.script, r"traced graph \(RecursiveScriptModule\)"),
    ],
)
@pytest.mark.parametrize(("function", "verb"), [(convert_, "convert"), (revert_, "revert")])
def test_wrapped_models_are_refused(function, verb, wrap, message):
    with pytest.raises(TypeError, match=message.replace("convert", verb)):
        function(wrap(Block()))


def test_ddp_and_in_place_compile_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match=r"wrapped by DistributedDataParallel; convert its \.module first"):
            convert_(nn.parallel.DistributedDataParallel(Block()))
    finally:
        torch.distributed.destroy_process_group()
    model = Block()
    model.compile()
    with pytest.raises(TypeError, match="convert it first, then compile it"):
        convert_(model, ALL)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet50", r"model is a str; convert an nn\.Module: build the network first"),
        (Block, "model is a type; convert an .*: build the network first"),
        (inputs, "model is a function; .*: build the network first"),
        (Block().state_dict(), "model is a OrderedDict; .*: build the network first"),
    ],
)
def test_not_a_module(model, message):
    with pytest.raises(TypeError, match=message):
        convert_(model, ALL)
    with pytest.raises(TypeError, match=r"revert an nn\.Module"):
        revert_(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"layers": "kxk"}}, r"config is a dict; pass an ICConfig, of a dict ICConfig\(\*\*config\)"),
        ({"config": "kxk"}, "config is a str; pass an ICConfig"),
        ({"config": ICConfig}, "config is a type; pass an ICConfig"),
        ({"config": {}}, "config is a dict"),
        ({"filter_fn": "stem"}, "'str' object is not callable"),
        ({"calibration_data": torch.zeros(2, 3, 8, 8)}, r"is a Tensor; it must be a list .*=\[batch\]"),
    ],
)
def test_arguments_of_another_type(arguments, message):
    model = Block()
    with pytest.raises(TypeError, match=message):
        convert_(model, **arguments)
    assert not list(ic_parameters(model))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", "1x1", "layers is '1x1'; it must be one of all, auto, kxk, no-stem"),
        ("scale", "l2", "scale is 'l2'; it must be one of sqrt, sum, mean"),
        ("warm_start", "warm", "warm_start is 'warm'; it must be one of none, gain, calibrate"),
        ("calibration_rate", 1.5, "calibration_rate is 1.5; it must lie between 0 and 1"),
        ("calibration_rate", "1 %", "calibration_rate is '1 %'; it must be a finite number"),
        ("collision_weight", float("nan"), "collision_weight is nan; it must be a finite number"),
        ("collision_weight", float("-inf"), "collision_weight is -inf; it must be a finite number"),
        ("collision_weight", "0.1", "collision_weight is '0.1'; it must be a finite number"),
        ("collision_weight", True, "collision_weight is True; it must be a finite number"),
        ("collision_weight", None, "collision_weight is None; it must be a finite number"),
        ("linear", "no", "linear is 'no'; it must be True or False"),
        ("inner_bias", 1, "inner_bias is 1; it must be True or False"),
        ("layers", ["kxk"], r"layers is \['kxk'\]; it must be one of"),
        ("max_change", 0.0, "max_change is 0.0; it must be a number above 0, or None"),
        ("max_change", float("nan"), "max_change is nan; it must be a number above 0"),
        ("version", 3, "the configuration has version 3; this icnets reads versions 1 and 2"),
    ],
)
def test_bad_configurations(field, value, message):
    with pytest.raises(ValueError, match=message):
        ICConfig(**{field: value})


def test_numbers_of_a_configuration_become_plain():
    config = ICConfig(collision_weight=np.float32(0.5), calibration_rate=np.float64(0.25))
    assert [type(v) for v in (config.collision_weight, config.calibration_rate)] == [float, float]
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


# -- all or nothing --------------------------------------------------------------------------------------------------


def contents(model):
    """Everything that surgery changes, of every module: class, attributes, tables of parameters, buffers and hooks."""
    tables = ("_parameters", "_buffers", "_modules")
    everything = {}
    for name, module in model.named_modules():
        state = {k: dict(v) if k in tables or "_hooks" in k else v for k, v in module.__dict__.items()}
        everything[name] = (
            type(module),
            {k: {n: id(x) for n, x in v.items()} if k in tables else v for k, v in state.items()},
        )
    return everything


class Fails(nn.Module):
    """Its forward pass raises, and it has a method that conversion guards."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Linear(4, 2)})

    def fuse(self):
        raise NotImplementedError

    def forward(self, x):
        self.deep["a"](self.norm(self.conv(x)))
        raise ZeroDivisionError("forward")


def fails_at(count, error):
    calls = iter(range(count))

    def choose(module, name):
        if next(calls, None) is None:
            raise error
        return True

    return choose


def batches(error):
    yield torch.randn(2, 3, 9, 9)
    raise error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"filter_fn": fails_at(1, KeyError("name"))}, KeyError),
        ({"filter_fn": fails_at(0, KeyboardInterrupt())}, KeyboardInterrupt),
        ({"filter_fn": lambda module: True}, TypeError),
        (
            {"config": ICConfig(warm_start="calibrate"), "calibration_data": [torch.randn(2, 3, 9, 9)]},
            ZeroDivisionError,
        ),
        (
            {"config": ICConfig(warm_start="calibrate"), "calibration_data": batches(OSError())},
            (OSError, ZeroDivisionError),
        ),
    ],
)
def test_a_conversion_that_fails_changes_nothing(arguments, error):
    model = Fails()
    before = contents(model)
    with pytest.raises(error):
        convert_(model, **arguments)
    assert contents(model) == before


@pytest.mark.parametrize("error", [RuntimeError("unexpected"), KeyboardInterrupt()])
def test_a_failure_halfway_is_undone(monkeypatch, error):
    model, taken = Fails(), ICConv2d.take_over_.__func__
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = model.conv.register_forward_hook(lambda *_: None)
    before = contents(model)

    def second_fails(cls, basic, **options):
        if basic is not model.conv:
            raise error
        return taken(cls, basic, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ICConv2d, "take_over_", classmethod(second_fails))
        with pytest.raises(type(error)):
            convert_(model, optimizers=[optimizer])
    assert contents(model) == before
    assert len(optimizer.param_groups) == 1
    handle.remove()
    assert not model.conv._forward_hooks
    convert_(model, optimizers=[optimizer])
    before = contents(model)

    def refuses(layer):
        if layer is not model.conv:
            raise error
        return given_back(layer)

    given_back = ICConv2d.give_back_
    with monkeypatch.context() as patch:
        patch.setattr(ICConv2d, "give_back_", refuses)
        with pytest.raises(type(error)):
            revert_(model)
    assert contents(model) == before
    assert revert_(model) == ["conv", "deep.a"]


# -- optimizers; more in test_optimizers.py ---------------------------------------------------------------------------


def test_an_optimizer_built_earlier_is_an_error_and_nothing_is_changed():
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=r"build it after the conversion, or pass it as optimizers=\[\.\.\.\]"):
        convert_(model, ALL)
    assert not list(ic_parameters(model))
    assert convert_(copy.deepcopy(model)).converted  # a copy is trained by no one
    assert optimizer.param_groups


@pytest.mark.parametrize("named", [False, True])
def test_an_optimizer_is_repaired(named):
    model = Block()
    body = [(n, p) for n, p in model.named_parameters() if not n.startswith("head")]
    head = [(n, p) for n, p in model.named_parameters() if n.startswith("head")]
    pick = (lambda pairs: pairs) if named else (lambda pairs: [p for _, p in pairs])
    groups = [{"params": pick(body), "lr": 0.5}, {"params": pick(head), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=1e-4)
    convert_(model, optimizers=[optimizer])
    added = {id(p) for p in optimizer.param_groups[2]["params"]}
    assert added == {id(p) for _, p in ic_parameters(model)}
    assert (optimizer.param_groups[2]["lr"], optimizer.param_groups[2]["weight_decay"]) == (0.5, 0.0)
    start = {n: p.detach().clone() for n, p in ic_parameters(model)}
    model(inputs()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, start[n]) for n, p in ic_parameters(model))


def test_an_optimizer_no_longer_used_can_be_ignored():
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert convert_(model, optimizers=()).converted
    assert len(optimizer.param_groups) == 1


# -- warm starts -----------------------------------------------------------------------------------------------------


def test_gain_is_the_same_function_and_everything_learns():
    model = Block()
    basic = copy.deepcopy(model)
    convert_(model, ICConfig(warm_start="gain"))
    x = inputs()
    torch.testing.assert_close(model(x), basic(x), rtol=0, atol=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    start = {n: p.detach().clone() for n, p in ic_parameters(model)}
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name, p in ic_parameters(model):
        assert not torch.equal(p, start[name]), name


# -- basic checkpoints -----------------------------------------------------------------------------------------------


def test_a_basic_state_dict_loads_with_only_the_new_parameters_missing():
    basic, model = Block().eval(), Block().eval()
    convert_(model, ICConfig(warm_start="gain"))
    load_basic_state_dict(model, basic.state_dict())
    x = inputs()
    assert torch.equal(model(x), basic(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn.weight"), r"it lacks bn\.weight$"),
        (lambda s: s.update(extra=torch.zeros(1)), r"it has the unknown extra$"),
        (
            lambda s: s.update({"head.bias": torch.zeros(7)}),
            r"it has the wrong shape of head\.bias \(7,\) instead of \(5,\)$",
        ),
    ],
)
def test_any_other_state_dict_is_an_error_and_loads_nothing(change, message):
    model, state = Block(), Block().state_dict()
    change(state)
    convert_(model, ALL)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_basic_state_dict(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
