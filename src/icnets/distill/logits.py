"""What logits and targets must be; errors name both values."""

import torch
from torch import Tensor

from icnets.support.text import described


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
            raise ValueError(f"the student has {ours[1]} classes and the teacher {theirs[1]}: they must be the same")
        if ours != theirs:
            raise ValueError(f"student and teacher logits must have one shape, got {ours} and {theirs}")


def check_target(logits: Tensor, target: object) -> bool:
    """Returns whether the targets are soft; raises where they don't fit the logits."""
    shape = tuple(logits.shape)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor of labels (N, ...) or probabilities {shape}, got {described(target)}")
    found, soft = tuple(target.shape), target.is_floating_point()
    if soft and found != shape:
        raise ValueError(f"soft targets must have the logits' shape {shape}, got {found}")
    if not soft and target.dtype != torch.int64:
        raise TypeError(f"hard labels must be int64 and soft targets floating, got {target.dtype}")
    if not soft and found != (shape[0], *shape[2:]):
        raise ValueError(f"hard labels for logits {shape} must be {(shape[0], *shape[2:])}, got {found}")
    return soft
