import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor, nn

from icnets import DistillationSchedule, ICConfig, WeakLogitDistillation, convert_
from icnets.training.optimization import Optimization, learning_rate_factor, make_criterion, make_optimizer, scaled_lr
from training.test_task import digits, fit, task, tiny


@pytest.mark.parametrize(
    ("batch", "scaling", "expected"),
    [(256, "linear", 0.1), (1024, "linear", 0.4), (1024, "sqrt", 0.2), (64, "linear", 0.025)],
)
def test_the_learning_rate_grows_with_the_batch(batch: int, scaling: Any, expected: float) -> None:
    assert scaled_lr(0.1, lr_batch=256, global_batch=batch, scaling=scaling) == pytest.approx(expected)
    assert scaled_lr(0.1, lr_batch=None, global_batch=batch, scaling=scaling) == 0.1


def test_the_global_batch_counts_accumulated_images() -> None:
    module = task(lr=0.1, lr_batch=20, schedule="step", milestones=(), warmup=0.0)
    trainer = fit(module, digits(batch_size=40), max_epochs=1, accumulate_grad_batches=2)
    assert module.global_batch == 80
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.4)


def test_scaling_needs_to_know_the_batch() -> None:
    with pytest.raises(ValueError, match=r"lr_batch is given, but the data module has no batch_size"):
        make_optimizer(tiny(), Optimization(lr_batch=256), total=10)


def test_steps_at_milestones_and_a_floor() -> None:
    marks: Any = {"total": 90, "schedule": "step", "warmup": 0.0, "milestones": (1 / 3, 2 / 3)}
    assert [learning_rate_factor(s, **marks) for s in (0, 29, 30, 59, 60, 89)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    floor: Any = {"total": 1000, "schedule": "cosine", "warmup": 0.1, "min_lr": 0.01}
    values = [learning_rate_factor(s, **floor) for s in range(1000)]
    assert values[-1] == pytest.approx(0.01, abs=1e-4)
    assert max(values) == pytest.approx(1, abs=1e-4)
    middle = 0.01 + 0.99 * 0.5
    assert values[550] == pytest.approx(middle, abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (0.7, 0.5)}, r"milestones is \(0\.7, 0\.5\); it must be ascending fractions"),
        ({"milestones": (30.0,)}, r"milestones is \(30\.0,\)"),
        ({"min_lr": 1.0}, "min_lr is 1.0; it must be at least 0 and less than 1"),
        ({"lr_batch": 0}, "lr_batch is 0; it must be at least 1"),
        ({"new_lr": 0.0}, "new_lr is 0.0; it must be greater than 0 and at most 1"),
        ({"new_lr": 1.5}, "new_lr is 1.5; it must be greater than 0 and at most 1"),
        ({"new_lr": math.nan}, "new_lr is nan"),
        ({"lr_scaling": "cubic"}, "lr_scaling is 'cubic'; it must be one of linear, sqrt"),
        ({"loss": "hinge"}, "loss is 'hinge'; it must be one of cross-entropy, bce"),
        ({"bce_threshold": 0.2}, "bce_threshold is 0.2 with loss 'cross-entropy'"),
        ({"loss": "bce", "bce_threshold": 1.0}, "bce_threshold is 1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_lamb_is_timms_and_decays_weights_alone() -> None:
    network = tiny()
    convert_(network, ICConfig())
    optimizer, _ = make_optimizer(network, Optimization("lamb", lr=0.005, weight_decay=0.02), total=10)
    assert type(optimizer).__name__ == "Lamb"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
    module = task(optimizer="lamb", lr=0.01, loss="bce", bce_threshold=0.2)
    trainer = fit(module, digits(train_size=300, mixup=0.1, cutmix=1.0), max_epochs=3)
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_what_ic_adds_trains_at_a_fraction_of_the_rate_all_along(name: Any) -> None:
    network = tiny()
    convert_(network, ICConfig(warm_start="gain"))
    options = Optimization(name, lr=0.02, new_lr=0.25, lr_batch=10)
    optimizer, schedule = make_optimizer(network, options, total=10, global_batch=20)
    for step in range(10):
        weights, norms, own = (group["lr"] for group in optimizer.param_groups)
        assert weights == norms == pytest.approx(0.04 * schedule.lr_lambdas[0](step))
        assert own == pytest.approx(0.25 * weights)
        optimizer.step()
        schedule.step()


def test_at_the_full_rate_the_groups_are_those_of_before() -> None:
    network = tiny()
    convert_(network, ICConfig(warm_start="gain"))
    plain, given = (make_optimizer(network, Optimization(lr=0.1, new_lr=f), total=9)[0] for f in (None, 1.0))
    assert given.state_dict() == plain.state_dict()
    assert len(given.param_groups) == 2
    apart = make_optimizer(network, Optimization(lr=0.1, new_lr=0.5), total=9)[0]
    for optimizer, state, said in ((apart, plain, "1, and new_lr is 0.5"), (plain, apart, "0.5, and new_lr is 1:")):
        with pytest.raises(ValueError, match=f"the checkpoint was trained with new_lr {said}"):
            optimizer.load_state_dict(state.state_dict())
    apart.load_state_dict(apart.state_dict())


# Binary cross-entropy as the task's loss of the distillation.


def naive_bce(logits: Tensor, target: Tensor, *, smoothing: float, threshold: float | None) -> Tensor:
    n, classes = logits.shape
    total = logits.new_zeros(())
    for i in range(n):
        for c in range(classes):
            if target.ndim == 2:
                t = float(target[i, c])
            else:
                t = (1 - smoothing if int(target[i]) == c else 0.0) + smoothing / classes
            if threshold is not None:
                t = float(t > threshold)
            p = torch.sigmoid(logits[i, c])
            total = total - (t * p.log() + (1 - t) * (1 - p).log())
    return total / (n * classes)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_distillation_beside_binary_cross_entropy(soft: bool, threshold: float | None) -> None:
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    target = torch.softmax(3 * torch.randn(6, 5, dtype=torch.float64), 1) if soft else torch.randint(5, (6,))
    smoothing = 0.0 if soft else 0.1
    schedule = DistillationSchedule("constant", weight=0.3)
    loss = WeakLogitDistillation(temperature=2.0, schedule=schedule, label_smoothing=smoothing)
    loss = make_criterion(loss, "bce", 0.0, threshold)
    found = loss.terms(student, teacher, target, 0.0)
    expected = naive_bce(student, target, smoothing=smoothing, threshold=threshold)
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    divergence = 4 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(found.task, expected)
    torch.testing.assert_close(found.loss, expected + 0.3 * divergence)
    (ours,) = torch.autograd.grad(found.loss, student, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected + 0.3 * divergence, student)
    torch.testing.assert_close(ours, theirs)
    alone = loss.terms(student, None, target, 0.0)
    torch.testing.assert_close(alone.loss, expected)


def test_half_precision_logits_are_compared_in_single() -> None:
    loss = WeakLogitDistillation(task_loss=BinaryCrossEntropy(smoothing=0.0))
    logits = (20 * torch.randn(4, 5)).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(logits, None, torch.arange(4), 0.0)
    expected = F.binary_cross_entropy_with_logits(logits.float(), F.one_hot(torch.arange(4), 5).float())
    torch.testing.assert_close(found, expected)


def test_smoothing_is_said_once() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1 beside a task_loss, which smooths labels itself"):
        WeakLogitDistillation(label_smoothing=0.1, task_loss=nn.BCEWithLogitsLoss())
    module = task(loss="bce", label_smoothing=0.1)
    assert isinstance(module.criterion.task_loss, BinaryCrossEntropy)
    assert module.criterion.task_loss.smoothing == 0.1
    assert task().criterion.task_loss is None
