"""Weak logit distillation: the loss, its schedule, and the teacher."""

from icnets.distill.loss import DistillationSchedule, WeakLogitDistillation
from icnets.distill.teacher import Teacher

__all__ = ["DistillationSchedule", "Teacher", "WeakLogitDistillation"]
