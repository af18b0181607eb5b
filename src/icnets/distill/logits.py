"""What logits and targets must be, and what is computed from logits of which -inf masks some."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.distill.teacher import require_same_shape
from icnets.support.text import described

IGNORED_LABEL = -100  # F.cross_entropy's own marker of places without a label
# Logits flatter than this count as this wide: a zero-initialised head has std 0, and 1 / std would be its gradient.
_MIN_LOGIT_STD = 1e-2


def readable(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on a GPU it would force a device sync."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def z_score(logits: Tensor) -> Tensor:
    """Standardises over the classes that aren't masked by -inf, which stay -inf."""
    masked = logits == -math.inf
    count = (~masked).sum(1, keepdim=True)
    shown = logits.masked_fill(masked, 0.0)
    centred = (shown - shown.sum(1, keepdim=True) / count).masked_fill(masked, 0.0)
    var = centred.square().sum(1, keepdim=True) / count
    return (centred / var.clamp_min(_MIN_LOGIT_STD**2).sqrt()).masked_fill(masked, -math.inf)


def cross_entropy(student: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Computes torch's cross-entropy without the classes that the student masks by -inf."""
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
    valid = target >= 0 if soft else (target == IGNORED_LABEL) | ((target >= 0) & (target < classes))
    if (wrong := target[~valid]).numel():
        if soft:
            raise ValueError(f"soft targets must be probabilities >= 0, got {float(wrong[0])}")
        allowed = f"labels run from 0 to {classes - 1}, and {IGNORED_LABEL} marks places without one"
        raise ValueError(f"target holds the label {int(wrong[0])}, but the logits have {classes} classes: {allowed}")
    masked = student == -math.inf
    if not masked.any() or (student == math.inf).any() or student.isnan().any():
        return  # no mask; or a network that diverged, which the loss shows
    if not masks:
        raise ValueError("the student masks classes by -inf, which a task_loss can't take: leave it out, or mask none")
    _require_one_class("student", masked)
    if soft:
        wanted = target > 0
    else:
        wanted = F.one_hot(target.clamp_min(0), classes).movedim(-1, 1).bool() & (target >= 0).unsqueeze(1)
    if (lost := (masked & wanted).nonzero()).numel():
        sample, wanted_class = lost[0, :2].tolist()
        what = f"the target wants class {wanted_class}, which the student's logits mask by -inf in sample {sample}"
        raise ValueError(f"{what}: the loss would be infinite")


def _require_one_class(who: str, masked: Tensor) -> None:
    if masked.all(1).any():
        raise ValueError(f"the {who}'s logits are -inf for all classes of a sample: leave at least one")


def check_values_of_teacher(logits: Tensor, student: Tensor) -> None:
    """Raises ValueError for a teacher's NaN or infinity, unless the student's logits hold NaN too."""
    if student.isnan().any():
        return  # The inputs or the student are the cause, which the loss shows.
    if logits.isnan().any() or (logits == math.inf).any():
        raise ValueError("the teacher's logits hold NaN or +inf: check its weights and what normalisation it expects")
    _require_one_class("teacher", logits == -math.inf)


def check_logits(student: object, teacher: object) -> None:
    """Raises TypeError or ValueError for logits that no loss can be computed from."""
    for who, logits in (("student", student), ("teacher", teacher)):
        if who == "teacher" and logits is None:
            return
        if not isinstance(logits, Tensor):
            found = described(logits)
            raise TypeError(f"{who} logits must be a tensor (N, C, ...), got {found}; pass the logits alone")
        if logits.ndim < 2 or not logits.is_floating_point():
            found = f"{logits.dtype} {tuple(logits.shape)}"
            raise ValueError(f"{who} logits must be floating and (N, C, ...), got {found}")
        if not logits.numel():
            raise ValueError(f"{who} logits are {tuple(logits.shape)}: an empty batch has no loss; leave it out")
    assert isinstance(student, Tensor)
    assert isinstance(teacher, Tensor)
    require_same_shape(student, teacher)
    if teacher.device != student.device:
        places = f"student logits are on {student.device} and teacher logits on {teacher.device}"
        raise ValueError(f"{places}: move the teacher")


def check_target(logits: Tensor, target: object) -> bool:
    """Returns whether the targets are soft; raises where they don't fit the logits."""
    shape = tuple(logits.shape)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor of labels (N, ...) or probabilities {shape}, got {described(target)}")
    if target.device != logits.device:
        raise ValueError(f"the logits are on {logits.device} and the target on {target.device}: move one")
    found, soft = tuple(target.shape), target.is_floating_point()
    if soft and len(found) == len(shape) and found[1] != shape[1]:
        raise ValueError(f"the logits have {shape[1]} classes and the soft targets {found[1]}")
    if soft and found != shape:
        raise ValueError(f"soft targets must have the logits' shape {shape}, got {found}")
    if not soft and target.dtype != torch.int64:
        wanted = "hard labels must be int64 and soft targets floating"
        raise TypeError(f"{wanted}, got {target.dtype}: use .long() or .float()")
    if not soft and found != (shape[0], *shape[2:]):
        raise ValueError(f"hard labels for logits {shape} must be {(shape[0], *shape[2:])}, got {found}")
    return soft
