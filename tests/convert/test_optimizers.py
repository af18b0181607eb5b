"""Optimizers and learning-rate schedules that exist before the conversion."""

import copy

import pytest
import torch
from timm.optim import Lookahead, create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.swa_utils import SWALR

from icnets import ICConfig, convert_, ic_parameters, revert_
from icnets.convert.optimizers import checked


def network():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def group_of(optimizer, parameter):
    """The one group that holds ``parameter``."""
    [group] = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return group


def assert_placed(model, optimizer, layers=("0", "2", "4")):
    """Each vector is in one group, whose options are its layer's weight's, but for weight decay."""
    for name in layers:
        layer = model.get_submodule(name)
        wanted = {k: v for k, v in group_of(optimizer, layer.weight).items() if not k.startswith("param")}
        for _, vector in ic_parameters(layer):
            options = {k: v for k, v in group_of(optimizer, vector).items() if not k.startswith("param")}
            assert options == wanted | ({"weight_decay": 0.0} if "weight_decay" in wanted else {})


def train(model, optimizer):
    def loss():
        optimizer.zero_grad()
        value = model(torch.randn(2, 3, 8, 8)).square().mean()
        value.backward()
        return value

    loss()
    optimizer.step()


def by_decay(model):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0, "momentum": 0.5},
        {"params": decayed, "weight_decay": 1e-4, "lr": 0.3},
    ]


def by_layer(model):
    layers = [m for m in model if list(m.parameters())]
    return [{"params": list(m.parameters()), "lr": 0.1 * 0.7**i, "lr_scale": 0.7**i} for i, m in enumerate(layers)]


def by_layer_and_decay(model):
    groups = by_layer(model)
    return [g | {"params": [p for p in g["params"] if (p.ndim > 1) == w]} for g in groups for w in (True, False)]


def by_parameter(model):
    return [{"params": [p], "lr": 0.01 * (i + 1), "weight_decay": 0.1} for i, p in enumerate(model.parameters())]


def biases_in_front(model):
    named = list(model.named_parameters())
    return [{"params": [(n, p) for n, p in named if ("bias" in n) == b], "lr": 0.1 + b} for b in (True, False)]


@pytest.mark.parametrize("split", [by_decay, by_layer, by_layer_and_decay, by_parameter, biases_in_front])
def test_the_vectors_are_trained_like_their_layer_s_weight(split):
    model = network()
    optimizer = torch.optim.SGD(split(model), lr=0.2, momentum=0.9, weight_decay=1e-3)
    groups = len(optimizer.param_groups)
    convert_(model, ICConfig(linear=True, warm_start="gain"), optimizers=[optimizer])
    assert len(optimizer.param_groups) > groups
    assert_placed(model, optimizer)
    train(model, optimizer)


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_the_groups_that_timm_makes(layer_decay):
    model = network()
    model.no_weight_decay = lambda: set()
    model.group_matcher = lambda coarse=False: {"stem": r"^0\.", "blocks": r"^(\d+)\."}
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=1e-4, layer_decay=layer_decay)
    assert group_of(optimizer, model[0].weight) is not group_of(optimizer, model[0].bias)
    convert_(model, ICConfig(linear=True), optimizers=[optimizer])
    assert_placed(model, optimizer)


def test_groups_with_named_parameters():
    model = network()
    groups = [{"params": list(model[:3].named_parameters()), "name": "body"}]
    groups += [{"params": list(model[3:].named_parameters()), "name": "head"}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    convert_(model, optimizers=[optimizer])
    assert [g.get("name") for g in optimizer.param_groups] == ["body", "head", None]  # a name is one group's
    names = optimizer.param_groups[2]["param_names"]
    assert names == ["0.collision", "0.inner_bias", "2.collision", "2.inner_bias"]
    assert [id(p) for p in optimizer.param_groups[2]["params"]] == [id(model.get_parameter(n)) for n in names]
    extended = convert_(model, ICConfig(linear=True), optimizers=[optimizer])
    assert extended.converted == ["4"]
    revert_(model)
    convert_(model, optimizers=[optimizer])


def test_each_of_two_optimizers_that_train_a_weight_gets_its_vectors_once():
    model = network()
    first = torch.optim.SGD(model.parameters(), 0.1)
    second = torch.optim.Adam(model[2].parameters(), 0.2)
    convert_(model, optimizers=(o for o in (first, second, first)))
    for layer, optimizers in ((model[0], [first]), (model[2], [first, second])):
        for _, vector in ic_parameters(layer):
            held = [o for o in (first, second) if any(p is vector for g in o.param_groups for p in g["params"])]
            assert held == optimizers
    assert [len(o.param_groups) for o in (first, second)] == [2, 2]


def test_one_optimizer_a_layer_in_a_dictionary():
    model = network()
    optimizers = {n: torch.optim.SGD(m.parameters(), 0.1) for n, m in model.named_children() if list(m.parameters())}
    convert_(model, optimizers=optimizers)
    assert [len(o.param_groups) for o in optimizers.values()] == [2, 1, 2, 1]


def test_what_is_not_trained_is_said():
    model = network()
    model[2].weight.requires_grad_(False)
    biases = torch.optim.SGD([p for p in model.parameters() if p.ndim == 1], 0.1)
    report = convert_(model, optimizers=[biases])
    assert report.untrained == {"0": "no optimizer that was passed trains its weight", "2": "its weight is frozen"}
    assert "new parameters not trained, its weight is frozen: 2" in str(report)
    assert len(biases.param_groups) == 1
    assert not model[2].collision.requires_grad


def test_frozen_weights_that_an_optimizer_holds_take_their_vectors_along():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0].requires_grad_(False)
    report = convert_(model, optimizers=[optimizer])
    assert_placed(model, optimizer, ("0", "2"))
    assert report.untrained == {"0": "its weight is frozen"}


def test_tensors_among_the_options_are_not_shared():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    schedule = torch_schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    convert_(model, optimizers=[optimizer])
    for metric in (1.0, 2.0, 3.0):
        schedule.step(metric)
    torch.testing.assert_close([float(g["lr"]) for g in optimizer.param_groups], [0.025, 0.025])


# -- kinds of optimizers ---------------------------------------------------------------------------------------------

TIMM = [n for n in list_optimizers() if not n.startswith(("bnb", "fused", "kron"))]  # CUDA only; compiles
TIMM = [n for n in TIMM if n not in ("adagrad", "adahessian") and "muon" not in n]  # refused
TORCH = ["SGD", "Adam", "AdamW", "Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        *[lambda p, n=n: getattr(torch.optim, n)(p, lr=0.01) for n in [*TORCH, "Rprop"]],
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), amsgrad=True, fused=True),
        lambda p: Lookahead(torch.optim.AdamW(p, lr=0.01)),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_every_optimizer_of_torch_trains_the_vectors(make, begun):
    check_trains(make, begun)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMM)
def test_every_optimizer_of_timm_trains_the_vectors(name):
    check_trains(lambda p: create_optimizer_v2(list(p), name, lr=0.01), True)


def check_trains(make, begun):
    torch.manual_seed(0)
    model = network()
    optimizer = make(model.parameters())
    if begun:
        train(model, optimizer)
    convert_(model, ICConfig(linear=True, warm_start="gain"), optimizers=[optimizer])
    start = {n: p.detach().clone() for n, p in ic_parameters(model)}
    for _ in range(3):
        train(model, optimizer)
    assert not [n for n, p in ic_parameters(model) if torch.equal(p, start[n])]


def test_lightning_s_wrapper_is_its_optimizer():
    LightningOptimizer = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    model = network()
    inner = torch.optim.SGD(by_decay(model), lr=0.1)
    schedule = torch_schedules.LambdaLR(inner, lambda epoch: 0.5**epoch)
    convert_(model, optimizers=[LightningOptimizer(inner), inner])
    assert_placed(model, inner, ("0", "2"))
    inner.step()
    schedule.step()
    assert [g["lr"] for g in inner.param_groups] == [0.05, 0.15, 0.15]


def test_zero_redundancy_s_wrapper_shards_the_vectors(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network()
        zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
        convert_(model, ICConfig(warm_start="gain"), optimizers=[zero])
        start = {n: p.detach().clone() for n, p in ic_parameters(model)}
        for _ in range(2):
            train(model, zero)
        assert not [n for n, p in ic_parameters(model) if torch.equal(p, start[n])]
    finally:
        torch.distributed.destroy_process_group()


class OfMatrices(torch.optim.SGD):
    """Orthogonalises the matrices of groups with ``use_muon``, and so takes nothing else there."""


def flagged(model):
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == m], "use_muon": m} for m in (True, False)]
    return [OfMatrices(groups, lr=0.1)]


def test_groups_without_muon_take_vectors():
    model = network()
    optimizer = OfMatrices([*by_decay(model), {"params": nn.Linear(1, 1).parameters(), "use_muon": True}], lr=0.1)
    convert_(model, optimizers=[optimizer])
    assert_placed(model, optimizer, ("0", "2"))


def step_refused(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.add_param_group = lambda group: 1 / 0
    return [optimizer]


def half(model):
    return [torch.optim.SGD(model[:2].parameters(), 0.1), torch.optim.SGD(model[2:].parameters(), 0.1)]


@pytest.mark.parametrize(
    ("make", "passed", "error", "message"),
    [
        (lambda m: [torch.optim.LBFGS(m.parameters())], 1, RuntimeError, "LBFGS can't take vectors later on; build it"),
        (lambda m: [torch.optim.Adagrad(m.parameters())], 1, RuntimeError, "Adagrad can't take vectors later on"),
        (lambda m: [create_optimizer_v2(m, "muon", 0.1)], 1, RuntimeError, "Muon can't take vectors later on"),
        (flagged, 1, RuntimeError, "OfMatrices can't take vectors later on; build it after convert_"),
        (step_refused, 1, ZeroDivisionError, "division"),
        (half, 1, RuntimeError, "SGD trains the weights of 2 and isn't among the optimizers passed; pass it too"),
        (lambda m: [torch.optim.SGD(network().parameters(), 0.1)], 1, RuntimeError, "none of the optimizers passed"),
    ],
)
def test_an_optimizer_that_can_not_be_extended_changes_nothing(make, passed, error, message):
    model = network()
    optimizers = make(model)
    before = [(o, copy.copy(o.param_groups), dict(o.state)) for o in optimizers]
    with pytest.raises(error, match=message):
        convert_(model, optimizers=optimizers[:passed])
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert all(o.param_groups == groups and dict(o.state) == state for o, groups, state in before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o: o, r"optimizers is a SGD; pass a list: optimizers=\[optimizer\]"),
        (lambda o: "sgd", "optimizers holds a str; it must be a list of optimizers"),
        (lambda o: 3, "optimizers is a int; pass a list"),
        (lambda o: [o, None], "optimizers holds a NoneType"),
        (lambda o: o.param_groups, "optimizers holds a dict"),
    ],
)
def test_optimizers_that_are_none(wrong, message):
    model = network()
    with pytest.raises(TypeError, match=message):
        convert_(model, optimizers=wrong(torch.optim.SGD(model.parameters(), 0.1)))
    assert type(model[0]) is nn.Conv2d
    assert checked(None) is None


# -- schedules -------------------------------------------------------------------------------------------------------


def chained(o):
    return torch_schedules.ChainedScheduler([torch_schedules.ConstantLR(o, 0.1, 4), torch_schedules.StepLR(o, 3)])


def sequential(o):
    warm_up = torch_schedules.LinearLR(o, 0.1, total_iters=3)
    return torch_schedules.SequentialLR(o, [warm_up, torch_schedules.CosineAnnealingLR(o, 9)], [3])


def of_groups(o, first, second):
    """``first`` for the groups marked 0, ``second`` for those marked 1."""
    return [(first, second)[g["mark"]] for g in o.param_groups]


class Plain:
    """Steps through the groups that are there."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9


SCHEDULES = {
    "LambdaLR": lambda o: torch_schedules.LambdaLR(o, of_groups(o, lambda e: 0.5**e, lambda e: 1 / (1 + e))),
    "MultiplicativeLR": lambda o: torch_schedules.MultiplicativeLR(o, of_groups(o, lambda e: 0.5, lambda e: 0.9)),
    "StepLR": lambda o: torch_schedules.StepLR(o, 2),
    "MultiStepLR": lambda o: torch_schedules.MultiStepLR(o, [2, 6]),
    "ConstantLR": lambda o: torch_schedules.ConstantLR(o, total_iters=6),
    "LinearLR": lambda o: torch_schedules.LinearLR(o, total_iters=7),
    "ExponentialLR": lambda o: torch_schedules.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: torch_schedules.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: torch_schedules.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: torch_schedules.ReduceLROnPlateau(o, "min", 0.7, 0, min_lr=of_groups(o, 0.02, 0.09)),
    "CyclicLR": lambda o: torch_schedules.CyclicLR(o, of_groups(o, 0.01, 0.1), of_groups(o, 0.2, 0.3), 3),
    "OneCycleLR": lambda o: torch_schedules.OneCycleLR(o, of_groups(o, 0.2, 0.6), total_steps=12),
    "SWALR": lambda o: SWALR(o, of_groups(o, 0.05, 0.01), anneal_epochs=6),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
    "own, plain": Plain,
}


def advance(schedule, epoch):
    metric = abs(epoch - 2.5)
    if isinstance(schedule, torch_schedules.ReduceLROnPlateau):
        schedule.step(metric)
    else:
        schedule.step()


def options_over_time(make, converted_at):
    """Options of the vectors' groups after each of 9 epochs, from the conversion on."""
    model = nn.ModuleList([nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3)])
    marked = [(layer.weight, {"lr": 0.1 * (1 + i), "mark": i}) for i, layer in enumerate(model)]
    groups = [{"params": [p], **options} for p, options in marked]
    if converted_at < 0:  # before the optimizer is built
        convert_(model)
        vectors = [[p for _, p in ic_parameters(layer)] for layer in model]
        groups += [{"params": new, **o, "weight_decay": 0.0} for new, (_, o) in zip(vectors, marked, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule, history = make(optimizer), []
    for epoch in range(9):
        if epoch == converted_at:
            convert_(model, optimizers=[optimizer])
        optimizer.step()
        advance(schedule, epoch)
        history.append([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    return history[max(converted_at, 0) :]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_over_the_vectors(name):
    reference = options_over_time(SCHEDULES[name], -1)
    for converted_at in (0, 4):
        found = options_over_time(SCHEDULES[name], converted_at)
        assert len(found[0]) == 4
        torch.testing.assert_close(found, reference[converted_at:])
        assert found[0][0] != found[-1][0]


class ByIndex:
    """Someone's own schedule, with a number for each group."""

    def __init__(self, optimizer):
        self.optimizer, self.bases = optimizer, [g["lr"] for g in optimizer.param_groups]

    def step(self):
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = base / 2


class OfFunctions(torch_schedules.LRScheduler):
    def __init__(self, optimizer):
        self.shapes = tuple(lambda e: 0.5**e for _ in optimizer.param_groups)
        super().__init__(optimizer)

    def get_lr(self):
        return [b * f(self.last_epoch) for b, f in zip(self.base_lrs, self.shapes, strict=True)]


@pytest.mark.parametrize(
    ("kind", "epoch"), [(ByIndex, ()), (OfFunctions, ()), (lambda o: CosineLRScheduler(o, 10, warmup_t=4), (1,))]
)
def test_a_schedule_that_is_not_torch_s_is_refused(kind, epoch):
    model = network()
    optimizer = torch.optim.SGD(by_decay(model), 0.1)
    schedule = kind(optimizer)
    name = type(schedule).__name__
    with pytest.raises(RuntimeError, match=f"{name} schedules an optimizer that was passed; build it after convert_"):
        convert_(model, optimizers=[optimizer])
    assert not list(ic_parameters(model))
    assert len(optimizer.param_groups) == 2
    optimizer.step()
    schedule.step(*epoch)


def test_what_holds_an_optimizer_and_steps_is_no_schedule_by_groups():
    class Trainer:
        def __init__(self, optimizer):
            self.optimizer, self.losses, self.callbacks, self.milestones = optimizer, [2.5], [print], (3,)

        def step(self):
            self.optimizer.step()

    model = network()
    trainer = Trainer(torch.optim.SGD(model.parameters(), 0.1))
    convert_(model, optimizers=[trainer.optimizer])
    assert len(trainer.optimizer.param_groups) == 2


def test_a_schedule_is_put_back_when_a_later_optimizer_refuses():
    model = network()
    first, second = half(model)
    schedule = torch_schedules.LambdaLR(first, lambda epoch: 0.5**epoch)
    second.add_param_group = lambda group: 1 / 0
    lists = (schedule.base_lrs, schedule.lr_lambdas)
    with pytest.raises(ZeroDivisionError):
        convert_(model, optimizers=[first, second])
    assert (schedule.base_lrs, schedule.lr_lambdas) == lists
    assert [len(o.param_groups) for o in (first, second)] == [1, 1]
    first.step()
    schedule.step()
