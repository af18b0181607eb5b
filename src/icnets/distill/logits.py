"""What logits and targets must be; errors name both values."""

import torch
from torch import Tensor

from icnets.distill.teacher import require_same_shape
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
        allowed = f"labels run from 0 to {classes - 1}, and {_IGNORED_LABEL} marks places without one"
        raise ValueError(f"target holds the label {int(wrong[0])}, but the logits have {classes} classes: {allowed}")


def check_logits(student: object, teacher: object) -> None:
    """Raises TypeError or ValueError for logits that no loss can be computed from; ``teacher`` may be None."""
    for who, logits in (("student", student), *([("teacher", teacher)] if teacher is not None else [])):
        if not isinstance(logits, Tensor):
            found = described(logits)
            raise TypeError(f"{who} logits must be a tensor (N, C, ...), got {found}; pass the logits alone")
        if logits.ndim < 2 or not logits.is_floating_point():
            found = f"{logits.dtype} {tuple(logits.shape)}"
            raise ValueError(f"{who} logits must be floating and (N, C, ...), got {found}")
        if not logits.numel():
            raise ValueError(f"{who} logits are {tuple(logits.shape)}: an empty batch has no loss; leave it out")
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
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
