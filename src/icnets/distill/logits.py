"""What logits and targets must be, and what is computed from logits of which -inf masks some (ours)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.distill.teacher import require_same_shape
from icnets.support.text import described

__all__ = [
    "check_logits",
    "check_target",
    "check_values",
    "check_values_of_teacher",
    "cross_entropy",
    "readable",
    "z_score",
]

IGNORED_LABEL = -100  # F.cross_entropy's own marker of places without a label
# Logits flatter than this count as this wide: a zero-initialised head has std 0, and 1 / std would be its gradient.
_MIN_LOGIT_STD = 1e-2


def readable(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on a GPU it would wait for the whole queue."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def z_score(logits: Tensor) -> Tensor:
    """Over the classes that aren't masked by -inf, which stay -inf."""
    masked = logits == -math.inf
    count = (~masked).sum(1, keepdim=True)
    shown = logits.masked_fill(masked, 0.0)
    centred = (shown - shown.sum(1, keepdim=True) / count).masked_fill(masked, 0.0)
    var = centred.square().sum(1, keepdim=True) / count
    return (centred / var.clamp_min(_MIN_LOGIT_STD**2).sqrt()).masked_fill(masked, -math.inf)


def cross_entropy(student: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """As torch's, where classes that the student masks by -inf are none: they take part in no smoothing either."""
    if not target.is_floating_point() and smoothing == 0.0:
        return F.cross_entropy(student, target)
    log_s = F.log_softmax(student, dim=1)
    masked = student == -math.inf
    if target.is_floating_point():
        return -(target * log_s.masked_fill(masked & (target == 0), 0.0)).sum() / (student.numel() / student.shape[1])
    even = -log_s.masked_fill(masked, 0.0).sum(1) * (student.shape[1] / (~masked).sum(1).to(log_s.dtype))
    labelled = target != IGNORED_LABEL
    even = torch.where(labelled, even, torch.zeros_like(even)).sum() / labelled.sum()
    return (1.0 - smoothing) * F.nll_loss(log_s, target) + even * (smoothing / student.shape[1])


def check_values(student: Tensor, target: Tensor, *, soft: bool, masks: bool) -> None:
    """Raises ValueError for targets out of range, or that the student's mask leaves without a finite loss."""
    classes = student.shape[1]
    if soft:
        wrong = target[~(target >= 0)]
        if wrong.numel():
            raise ValueError(f"soft targets must be probabilities >= 0, got {float(wrong[0])}")
    else:
        wrong = target[(target >= classes) | ((target < 0) & (target != IGNORED_LABEL))]
        if wrong.numel():
            raise ValueError(
                f"target holds the label {int(wrong[0])}, but the logits have {classes} classes: "
                f"labels run from 0 to {classes - 1}, and {IGNORED_LABEL} marks places without one"
            )
    masked = student == -math.inf
    if not masked.any() or (student == math.inf).any() or student.isnan().any():
        return  # no mask; or a network that ran away, of which the loss tells
    if not masks:
        raise ValueError("the student masks classes by -inf, which a task_loss can't take: leave it out, or mask none")
    if masked.all(1).any():
        raise ValueError("the student's logits are -inf for all classes of a sample: leave at least one")
    asked = target > 0 if soft else F.one_hot(target.clamp_min(0), classes).movedim(-1, 1).bool()
    if not soft:
        asked &= (target != IGNORED_LABEL).unsqueeze(1)
    if (lost := (masked & asked).nonzero()).numel():
        raise ValueError(
            f"the target wants class {int(lost[0, 1])}, which the student's logits mask by -inf in sample "
            f"{int(lost[0, 0])}: the loss would be infinite"
        )


def check_values_of_teacher(logits: Tensor, student: Tensor) -> None:
    if student.isnan().any():
        return  # so the inputs or the student are to blame, and the loss will say it
    if logits.isnan().any() or (logits == math.inf).any():
        raise ValueError("the teacher's logits hold NaN or +inf: check its weights and what normalisation it expects")
    if (logits == -math.inf).all(1).any():
        raise ValueError("the teacher's logits are -inf for all classes of a sample: leave at least one")


def check_logits(student: object, teacher: object) -> None:
    for who, logits in (("student", student), ("teacher", teacher)):
        if not isinstance(logits, Tensor) and not (who == "teacher" and logits is None):
            raise TypeError(
                f"{who} logits must be a tensor (N, C, ...), got {described(logits)}; pass the logits alone"
            )
    assert isinstance(student, Tensor)
    if student.ndim < 2 or not student.is_floating_point():
        raise ValueError(f"student logits must be floating and (N, C, ...), got {student.dtype} {tuple(student.shape)}")
    if not student.numel():
        raise ValueError(f"student logits are {tuple(student.shape)}: an empty batch has no loss; leave it out")
    if not isinstance(teacher, Tensor):
        return
    require_same_shape(student, teacher)
    if not teacher.is_floating_point():
        raise ValueError(f"teacher logits must be floating, got {teacher.dtype}")
    if teacher.device != student.device:
        raise ValueError(
            f"student logits are on {student.device} and teacher logits on {teacher.device}: move the teacher"
        )


def check_target(logits: Tensor, target: object) -> bool:
    """Whether the targets are soft; raises where they don't fit the logits."""
    shape, classes = tuple(logits.shape), logits.shape[1]
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor of labels (N, ...) or probabilities {shape}, got {described(target)}")
    if target.device != logits.device:
        raise ValueError(f"the logits are on {logits.device} and the target on {target.device}: move one")
    if target.is_floating_point():
        if target.ndim == logits.ndim and target.shape[1] != classes:
            raise ValueError(f"the logits have {classes} classes and the soft targets {target.shape[1]}")
        if tuple(target.shape) != shape:
            raise ValueError(f"soft targets must have the logits' shape {shape}, got {tuple(target.shape)}")
        return True
    if target.dtype != torch.int64:
        raise TypeError(
            f"hard labels must be int64 and soft targets floating, got {target.dtype}: use .long() or .float()"
        )
    if tuple(target.shape) != (shape[0], *shape[2:]):
        raise ValueError(f"hard labels for logits {shape} must be {(shape[0], *shape[2:])}, got {tuple(target.shape)}")
    return False
