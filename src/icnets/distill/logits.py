"""What logits and targets must be; errors name both values."""

import torch
from torch import Tensor

from icnets.support.text import described

_IGNORED_LABEL = -100  # F.cross_entropy's own marker of places without a label


def readable(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on a GPU it would force a device sync."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_values(logits: Tensor, target: Tensor, *, soft: bool) -> None:
    """Raises ValueError for targets out of range."""
    classes = logits.shape[1]
    valid = target >= 0 if soft else (target == _IGNORED_LABEL) | ((target >= 0) & (target < classes))
    if (wrong := target[~valid]).numel():
        if soft:
            raise ValueError(f"soft targets must be probabilities >= 0, got {float(wrong[0])}")
        allowed = f"0 to {classes - 1}, and {_IGNORED_LABEL} for places without one"
        raise ValueError(f"target holds the label {int(wrong[0])}, but the logits have {classes} classes: {allowed}")


def check_logits(student: object, teacher: object) -> None:
    """Raises ValueError or TypeError for logits that no loss can be computed from; ``teacher`` may be None."""
    for who, logits in (("student", student), *([("teacher", teacher)] if teacher is not None else [])):
        if not isinstance(logits, Tensor):
            raise TypeError(f"{who} logits must be a tensor (N, C, ...) alone, got {described(logits)}")
        shape = tuple(logits.shape)
        if logits.ndim < 2 or not logits.is_floating_point():
            raise ValueError(f"{who} logits must be floating and (N, C, ...), got {logits.dtype} {shape}")
        if not logits.numel():
            raise ValueError(f"{who} logits are {shape}: an empty batch has no loss; leave it out")
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        ours, theirs = tuple(student.shape), tuple(teacher.shape)
        if ours[1] != theirs[1]:
            what = f"the student has {ours[1]} classes and the teacher {theirs[1]}"
            raise ValueError(f"{what}: distillation needs the same classes in the same order")
        if ours != theirs:
            raise ValueError(f"student and teacher logits must have one shape, got {ours} and {theirs}")
        if teacher.device != student.device:
            raise ValueError(f"student logits are on {student.device} and teacher logits on {teacher.device}: move one")


def check_target(logits: Tensor, target: object) -> bool:
    """Returns whether the targets are soft; raises where they don't fit the logits."""
    shape = tuple(logits.shape)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor of labels (N, ...) or probabilities {shape}, got {described(target)}")
    if target.device != logits.device:
        raise ValueError(f"the logits are on {logits.device} and the target on {target.device}: move one")
    found, soft = tuple(target.shape), target.is_floating_point()
    if soft and found != shape:
        raise ValueError(f"soft targets must have the logits' shape {shape}, got {found}")
    if not soft and target.dtype != torch.int64:
        raise TypeError(f"hard labels must be int64 and soft targets floating, got {target.dtype}")
    if not soft and found != (shape[0], *shape[2:]):
        raise ValueError(f"hard labels for logits {shape} must be {(shape[0], *shape[2:])}, got {found}")
    return soft
