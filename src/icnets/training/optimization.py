"""How a network is optimised: its loss, parameter groups, optimizer, and the course of the learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # timm exports it so
from torch import nn

from icnets.distill.loss import WeakLogitDistillation
from icnets.unit.layers import ic_parameters

OptimizerName = Literal["sgd", "adamw", "lamb"]
ScheduleName = Literal["one-cycle", "cosine", "step"]
ScalingName = Literal["linear", "sqrt"]
LossName = Literal["cross-entropy", "bce"]

_LR = {"sgd": 0.1, "adamw": 1e-3, "lamb": 5e-3}  # from scratch
_FINE_TUNING = 0.1  # of these, for weights that are trained already
_NEW_LR = 0.1  # and of that, for what IC adds to them


@dataclass(frozen=True)
class Optimization:
    """Which optimizer trains a network, and how its learning rate goes.

    The ranges are checked here and not by jsonargparse's restricted types, so that Python's callers get the same
    message, which names the option and its value.

    Args:
        optimizer: sgd (Nesterov momentum), adamw or lamb (timm's, arXiv 1904.00962).
        lr: the largest learning rate. None: 0.1 (adamw 0.001, lamb 0.005); and where training begins with trained
            weights or has a teacher, fine-tuning: a tenth of that, gradients clipped to a norm of 1 unless the trainer
            clips them.
        weight_decay: of weights; biases, norms and the parameters of collisions have none.
        momentum: of SGD.
        schedule: course of the learning rate: one-cycle (linear) and cosine fall to min_lr, step to a tenth at each
            of the milestones.
        warmup: fraction of the training over which the learning rate rises.
        min_lr: where the learning rate ends, as a fraction of lr.
        milestones: fractions of the training, for step.
        lr_batch: the global batch (per device x devices x accumulated) that lr is meant for; lr is scaled to the one
            in use. None: lr is taken as it is.
        lr_scaling: linear or sqrt, in the global batch.
        new_lr: factor on lr for what IC adds (w', b1, gain), in (0, 1]. None: 0.1 where that is fine-tuning, else 1.

    Raises:
        ValueError: a value is out of its range; the message names both.

    Example:
        >>> Optimization("adamw", lr=0.002).schedule
        'one-cycle'
    """

    optimizer: OptimizerName = "sgd"
    lr: float | None = None
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: ScheduleName = "one-cycle"
    warmup: float = 0.2
    min_lr: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    lr_batch: int | None = None
    lr_scaling: ScalingName = "linear"
    new_lr: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OptimizerName), ("schedule", ScheduleName), ("lr_scaling", ScalingName)):
            _require_one_of(name, getattr(self, name), choices)
        fractions = {name: 0 <= getattr(self, name) < 1 for name in ("momentum", "warmup", "min_lr")}
        marks, ascending = list(self.milestones), "ascending fractions of the training, such as (0.5, 0.75)"
        for name, fits, allowed in (
            ("lr", self.lr is None or 0 < self.lr < math.inf, "positive"),
            ("new_lr", self.new_lr is None or 0 < self.new_lr <= 1, "greater than 0 and at most 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            *((name, fits, "at least 0 and less than 1") for name, fits in fractions.items()),
            ("lr_batch", self.lr_batch is None or self.lr_batch >= 1, "at least 1, or null to take lr as it is"),
            ("milestones", marks == sorted(mark for mark in marks if 0 < mark < 1), ascending),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")


def _require_one_of(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def scaled_lr(lr: float, *, lr_batch: int | None, global_batch: int, scaling: ScalingName = "linear") -> float:
    """The learning rate for a batch of ``global_batch`` images, where ``lr`` is meant for one of ``lr_batch``.

    Linear: arXiv 1706.02677, for SGD. Square root: usual for LAMB (arXiv 1904.00962) and Adam. Without ``lr_batch``,
    ``lr`` itself.

    Example:
        >>> scaled_lr(0.5, lr_batch=256, global_batch=1024)
        2.0
    """
    if lr_batch is None:
        return lr
    ratio = global_batch / lr_batch
    return lr * (ratio if scaling == "linear" else math.sqrt(ratio))


def with_lr(options: Optimization, *, fine_tunes: bool) -> Optimization:
    """``options`` with the learning rates that aren't given: 0.1 (AdamW 0.001, LAMB 0.005), to fine-tune a tenth, and
    to fine-tune a tenth of that for what IC adds.

    They don't follow the small batches of small folders: with less, short trainings learn too little there.

    Example:
        >>> found = with_lr(Optimization("adamw"), fine_tunes=True)
        >>> found.lr, found.new_lr
        (0.0001, 0.1)
    """
    lr, new_lr = options.lr, options.new_lr
    if lr is None:
        lr = float(f"{_LR[options.optimizer] * (_FINE_TUNING if fine_tunes else 1.0):.3g}")  # no digits of rounding
    return replace(options, lr=lr, new_lr=(_NEW_LR if fine_tunes else 1.0) if new_lr is None else new_lr)


def parameter_groups(network: nn.Module, weight_decay: float, new_lr: float | None = None) -> list[dict[str, Any]]:
    """Two groups: weights, with decay, and without it biases, norms and IC's own parameters.

    Decay would pull w', b1 and the gain towards the basic network, and a norm's scale has no use for it. With
    ``new_lr``, a learning rate, IC's own are a third group that has it.
    """
    new = {id(p) for _, p in ic_parameters(network)}
    decayed, rest, own = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for p in network.parameters():
        if p.requires_grad and id(p) in new:
            (rest if new_lr is None else own).append(p)
        elif p.requires_grad:
            (decayed if p.ndim > 1 else rest).append(p)
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0})
    apart = {"params": own, "weight_decay": 0.0, "lr": new_lr}
    return [group for group in (*groups, apart) if group["params"]]


def learning_rate_factor(
    step: int,
    *,
    total: int,
    schedule: ScheduleName,
    warmup: float,
    min_lr: float = 0.0,
    milestones: Sequence[float] = (0.5, 0.75),
) -> float:
    """The learning rate at ``step`` of ``total``, as a fraction of the largest, in [0, 1].

    It rises linearly over the first ``warmup`` of the training, then: "one-cycle" falls linearly to ``min_lr``,
    "cosine" falls there in half a cosine, "step" falls to a tenth of itself at each milestone, a fraction of the
    training (``min_lr`` says nothing there).

    Example:
        >>> [learning_rate_factor(step, total=4, schedule="one-cycle", warmup=0.5) for step in range(4)]
        [0.25, 0.75, 0.75, 0.25]
    """
    progress = min((step + 0.5) / max(total, 1), 1.0)  # the middle of the step: neither its first nor its last is lost
    if progress < warmup:
        return progress / warmup
    if schedule == "step":
        return float(10.0 ** -sum(progress >= mark for mark in milestones))
    rest = (1 - progress) / (1 - warmup)
    shape = rest if schedule == "one-cycle" else 0.5 * (1 - math.cos(math.pi * rest))
    return min_lr + (1 - min_lr) * shape


def _options_of(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an optimizer's groups say of its options; IC's own parameters are the last group where new_lr isn't 1."""
    lr, own_lr = (groups[i].get("initial_lr", groups[i]["lr"]) for i in (0, -1))
    kept = {name: groups[0].get(name) for name in ("weight_decay", "momentum")}
    return {"new_lr": own_lr / lr if lr else 1.0, "optimizer": "betas" in groups[0], "lr": lr, **kept}


def _require_same_options(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """ValueError where a resumed training is given other options: those of its checkpoint would replace them."""
    theirs, ours = _options_of(state["param_groups"]), _options_of(optimizer.param_groups)
    for name, was in theirs.items():
        if None in (was, ours[name]) or math.isclose(was, ours[name]):
            continue
        said, now = f"{was:.6g}", f"{ours[name]:.6g}"
        if name == "optimizer":
            said, now = "adamw or lamb" if was else "sgd", type(optimizer).__name__.lower()
        remedy = f"leave --model.{name} as it was, or begin anew from the weights by --model.init_from"
        what = f"the checkpoint was trained with {name} {said}, and {name} is {now}"
        raise ValueError(f"{what}: a training goes on as it began; {remedy}")


def make_optimizer(
    network: nn.Module, options: Optimization, *, total: int, global_batch: int | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """SGD with Nesterov momentum, AdamW or timm's LAMB over :func:`parameter_groups`, and its schedule by steps.

    Args:
        network: whose parameters are trained.
        options: see :class:`Optimization`.
        total: optimizer steps of the whole training.
        global_batch: images per optimizer step, over all devices; needed where ``options.lr_batch`` is given.

    Raises:
        ValueError: nothing to train, or no ``global_batch``.

    Example:
        >>> optimizer, schedule = make_optimizer(nn.Conv2d(3, 8, 3), Optimization(lr=0.1), total=100)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0005, 0.0]
    """
    options = with_lr(options, fine_tunes=False)
    lr, new_lr = cast(float, options.lr), cast(float, options.new_lr)
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError("the network has no parameters to train: all have requires_grad=False")
    if options.lr_batch is not None and global_batch is None:
        raise ValueError("lr_batch is given, but the data module has no batch_size to scale lr by; leave lr_batch out")
    lr = scaled_lr(lr, lr_batch=options.lr_batch, global_batch=global_batch or 1, scaling=options.lr_scaling)
    groups = parameter_groups(network, options.weight_decay, None if new_lr == 1 else new_lr * lr)
    # timm's name for SGD without Nesterov is "momentum", which is all that torch allows of a momentum of 0.
    name = "momentum" if options.optimizer == "sgd" and options.momentum == 0 else options.optimizer
    optimizer = create_optimizer_v2(groups, opt=name, lr=lr, momentum=options.momentum)
    optimizer.register_load_state_dict_pre_hook(_require_same_options)
    course = {name: getattr(options, name) for name in ("schedule", "warmup", "min_lr", "milestones")}
    factor = partial(learning_rate_factor, total=total, **course)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_criterion(
    distillation: WeakLogitDistillation | None, loss: LossName, smoothing: float, threshold: float | None
) -> WeakLogitDistillation:
    """The loss of the distillation, whose task term is the one that is asked for.

    Args:
        distillation: its task term is replaced in place. None: one of the defaults.
        loss: "cross-entropy", or "bce": timm's binary cross-entropy, the mean over classes and images (arXiv
            2110.00476).
        smoothing: of hard labels; the distillation's own counts.
        threshold: "bce": soft targets above it count as 1, the others as 0; None takes them as they are.

    Raises:
        ValueError: an unknown loss, a threshold out of [0, 1) or without "bce", or two different label smoothings.

    Example:
        >>> make_criterion(None, "bce", smoothing=0.1, threshold=0.2).task_loss
        BinaryCrossEntropy()
    """
    _require_one_of("loss", loss, LossName)
    if threshold is not None and not (loss == "bce" and 0 <= threshold < 1):
        raise ValueError(f"bce_threshold is {threshold} with loss {loss!r}; it belongs to bce, at least 0, less than 1")
    criterion = distillation or WeakLogitDistillation(label_smoothing=smoothing)
    if smoothing not in (0.0, criterion.label_smoothing):
        both = f"{smoothing} for the task and {criterion.label_smoothing} for the distillation"
        raise ValueError(f"label_smoothing is {both}; give the distillation's only")
    if loss == "bce":
        criterion.task_loss = BinaryCrossEntropy(smoothing=criterion.label_smoothing, target_threshold=threshold)
    return criterion
