"""Running statistics belong to the weights that are validated and kept, also where an epoch has few steps."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from icnets import ICConfig, load
from icnets.data.data_module import ImageData
from icnets.training.callbacks import WeightAverage
from icnets.training.norm_statistics import lagging, take_anew
from icnets.training.task import ClassificationTask
from training.newest import Newest
from training.test_task import TINY, digits, fit, task, tiny


def frozen(norm: nn.Module) -> nn.Module:
    return norm.eval()


@pytest.mark.parametrize(
    ("norm", "steps", "lags"),
    [
        (nn.BatchNorm2d(3), 3, True),
        (nn.BatchNorm2d(3), 99, True),
        (nn.BatchNorm2d(3), 100, False),
        (nn.BatchNorm2d(3), float("inf"), False),
        (nn.BatchNorm1d(3, momentum=0.01), 500, True),
        (nn.BatchNorm2d(3, momentum=None), 100_000, True),
        (nn.BatchNorm3d(3), 5, True),
        (nn.SyncBatchNorm(3), 5, True),
        (BatchNormAct2d(3), 5, True),
        (nn.InstanceNorm2d(3, track_running_stats=True), 5, True),
        (frozen(nn.BatchNorm2d(3)), 3, False),
        (nn.BatchNorm2d(3, momentum=0.0), 3, False),
        (nn.BatchNorm2d(3, track_running_stats=False), 3, False),
        (nn.InstanceNorm2d(3), 3, False),
        (nn.GroupNorm(3, 3), 3, False),
        (nn.LayerNorm(3), 3, False),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_which_norms_lag(norm: nn.Module, steps: float, lags: bool) -> None:
    assert lagging(nn.Sequential(nn.Identity(), norm), steps) == (["1"] if lags else [])


class _Network(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], drop: float) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), kind(4), nn.Dropout(drop)
        self.second, self.out = nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.second(self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))))
        return out


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [(nn.BatchNorm2d, False), (BatchNormAct2d, False), pytest.param(nn.BatchNorm2d, True, marks=pytest.mark.slow)],
)
def test_taken_anew_as_torch_does_and_nothing_else_changes(kind: Any, compiled: bool) -> None:
    network = _Network(kind, drop=0.0).double()
    batches = list(torch.randn(5, 8, 3, 6, 6, dtype=torch.float64) * 3 + 1)
    for x in batches[:2]:
        network(x)
    expected = copy.deepcopy(network)
    update_bn(batches, expected)
    network.drop.p = 0.5  # evaluation drops nothing
    network.out.eval()
    if compiled:
        network.compile()
    modes = [m.training for m in network.modules()]
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    take_anew(network, lagging(network, 3), iter(batches), lambda t: t)
    for name, value in network.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, expected.state_dict()[name], msg=name)
            assert not torch.allclose(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
    assert [m.training for m in network.modules()] == modes
    assert (network.norm.momentum, network.second.momentum) == (0.1, 0.3)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mean_over_processes_is_taken() -> None:
    network = _Network(nn.BatchNorm2d, drop=0.0)
    x = torch.randn(8, 3, 6, 6)
    take_anew(network, lagging(network, 3), [x], lambda t: t + 1)
    torch.testing.assert_close(network.norm.running_mean, network.conv(x).mean((0, 2, 3)) + 1)  # type: ignore[arg-type]


def test_a_failure_leaves_modes_and_momenta() -> None:
    network = _Network(nn.BatchNorm2d, drop=0.5)
    network.out.eval()
    with pytest.raises(RuntimeError):
        take_anew(network, lagging(network, 3), [torch.randn(4, 3, 6, 6), torch.randn(4, 2, 6, 6)], lambda t: t)
    assert (network.norm.momentum, network.training, network.out.training) == (0.1, True, False)


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if "running" in name}


def expected_of(module: ClassificationTask, data: ImageData, numbers: range, epoch: int) -> dict[str, Tensor]:
    """The statistics of the trained network on batches of an epoch, averaged by torch, with everything else in eval."""
    network = copy.deepcopy(module.network).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.train().momentum = None
    with torch.no_grad():
        for number in numbers:
            network(data.training_batch(epoch, number)[0])
    return statistics(network)


class _Validated(L.Callback):
    def __init__(self) -> None:
        self.statistics: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.statistics = {name: value.clone() for name, value in statistics(pl_module.network).items()}


@pytest.mark.parametrize(
    ("options", "trainer", "batches", "epoch"),
    [
        ({}, {}, range(4), 1),
        ({"drop_rate": 0.3}, {"accumulate_grad_batches": 3}, range(4), 1),
        ({}, {"max_steps": 6, "max_epochs": -1}, range(2), 1),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 3}, range(4), 2),
        ({}, {"val_check_interval": 3, "max_epochs": 1}, range(4), 0),
        ({"channels_last": True}, {}, range(4), 1),
        ({"average": 0.7}, {}, range(4), 1),
        ({"average": 0.7}, {"check_val_every_n_epoch": 2, "max_epochs": 3}, range(4), 2),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_kept(
    options: dict[str, Any], trainer: dict[str, Any], batches: range, epoch: int, tmp_path: Path
) -> None:
    options = dict(options)
    average = [WeightAverage(options.pop("average"))] if "average" in options else []
    drop = {"drop_rate": options.pop("drop_rate", 0.0)}
    module, data = task(ic=ICConfig(), lr=0.2, model_options={**TINY, **drop}, **options), digits(batch_size=20)
    seen = _Validated()
    fit(module, data, *average, Newest(tmp_path), seen, **trainer)
    found, expected = statistics(module.network), expected_of(module, data, batches, epoch)
    exported = load(tmp_path / "best.safetensors").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(exported[name], found[name])
        if (
            "check_val_every_n_epoch" not in trainer
            and "max_steps" not in trainer
            and "val_check_interval" not in trainer
        ):
            assert torch.equal(seen.statistics[name], found[name])


@pytest.mark.parametrize("average", [None, 0.7])
def test_a_validation_within_an_epoch(average: float | None) -> None:
    module, data, found = task(lr=0.2), digits(batch_size=20), []

    class Within(L.Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 3:
                found.append((statistics(pl_module.network), expected_of(module, data, range(3), 0)))
                found[0] = ({name: value.clone() for name, value in found[0][0].items()}, found[0][1])

    averages = [] if average is None else [WeightAverage(average)]
    fit(module, data, *averages, Within(), max_epochs=1, val_check_interval=3)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_frozen_norms_stay_as_they_are() -> None:
    module = task(tiny(), lr=0.2)
    first, *rest = norms(module.network)
    first.eval()
    rest[0].momentum = 0.0
    with torch.no_grad():
        first.running_mean.fill_(0.5)  # type: ignore[union-attr]
        rest[0].running_mean.fill_(0.25)  # type: ignore[union-attr]
    fit(module)
    assert (first.running_mean == 0.5).all()  # type: ignore[union-attr]
    assert (rest[0].running_mean == 0.25).all()  # type: ignore[union-attr]
    assert not first.training
    assert rest[1].num_batches_tracked == 4


@pytest.mark.parametrize(("norm", "extra"), [(nn.BatchNorm2d, 2 * 2), (nn.Identity, 0)])
def test_without_such_norms_nothing_is_computed(norm: Any, extra: int) -> None:
    calls: list[bool] = []
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    network.register_forward_pre_hook(lambda module, args: calls.append(module.training or args[0].requires_grad))
    fit(task(network, lr=0.01))  # 2 epochs of 2 steps, and 15 batches of validation
    validation = 2 * -(-150 // 40)
    assert len(calls) == 1 + 4 + validation + extra
