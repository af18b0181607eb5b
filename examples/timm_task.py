"""Weak logit distillation as a timm ``TrainingTask``, for timm's own training loop or one like it.

    task = WeakLogitDistillationTask(student, teacher, total_steps=epochs * len(loader), device=device)
    task.check(next(iter(loader))[0])           # class counts, normalisation, shared parameters: before training
    for images, target in loader:               # soft targets of timm's mixup as well
        task(images, target)["loss"].backward()

timm's loop does not tell a task how far the training is. Either give ``total_steps``, the number of forward passes in
training (``epochs * len(loader)``; batches, not optimizer steps, where gradients are accumulated), and the task counts
them; or call ``set_progress`` whenever you know better, say once per epoch. Copy this file beside your script.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from icnets.distill.loss import Teacher, WeakLogitDistillation
from icnets.distill.teacher import require_independent

_logger = logging.getLogger(__name__)


class WeakLogitDistillationTask(TrainingTask):
    """Train any classifier by :class:`icnets.distill.loss.WeakLogitDistillation` in timm's loop.

    The checkpoint holds the student under timm's usual keys, and beside it, as the task's state, the progress and the
    surpass-stop. The teacher is in no state dict. After a validation, ``task.distillation.observe(student_accuracy,
    teacher_accuracy)`` drives the surpass-stop.

    Args:
        student: ``(N, C_in, ...) -> (N, C)``; needs no attribute of timm's.
        teacher: a network, a :class:`icnets.distill.loss.Teacher` (which says how it is normalised), or None for the
            baseline without a teacher. For a plain network that differs from the student in the mean and std of
            timm's ``pretrained_cfg``, the student's input is normalised anew.
        distillation: the loss with its schedule; None: the defaults.
        total_steps: forward passes in training mode from the first to the last epoch; None: ``set_progress`` is called.
        device: for the teacher and the loss; None: the student's.
        dtype: for the teacher and the loss, as timm's tasks take it; None: the teacher keeps its own.
        verbose: log what is done with the teacher.

    Raises:
        ValueError: class counts (both named, where the networks tell them), shared parameters, ``total_steps`` < 1.
        TypeError: an argument of the wrong type.

    Example:
        >>> student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)) for _ in range(2))
        >>> task = WeakLogitDistillationTask(student, teacher, total_steps=10)
        >>> result = task(torch.randn(2, 3, 2, 2), torch.tensor([0, 3]))
        >>> sorted(result), task.progress
        (['kd_loss', 'kd_weight', 'loss', 'output', 'task_loss'], 0.1)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distillation: WeakLogitDistillation | None = None,
        *,
        total_steps: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        whole = isinstance(total_steps, int) and not isinstance(total_steps, bool)
        if total_steps is not None and not (whole and total_steps >= 1):
            kind = ValueError if whole else TypeError
            raise kind(f"total_steps must be an int >= 1 or None, got {total_steps!r}")
        if distillation is not None and not isinstance(distillation, WeakLogitDistillation):
            raise TypeError(f"distillation must be a WeakLogitDistillation, got {type(distillation).__name__}")
        if device is None:
            device = next((p.device for p in student.parameters()), None)
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = student
        self.distillation = (distillation or WeakLogitDistillation()).to(device=self.device)
        self.teacher = None if teacher is None else _as_teacher(teacher, unwrap_model(student))
        if self.teacher is not None:
            self.teacher.to(device=self.device, dtype=dtype)
        self.total_steps = total_steps
        self._step = 0
        self._progress: float | None = None
        if self.verbose:
            _logger.info("%s: teacher=%s, %s", type(self).__name__, self.teacher, self.distillation)

    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1]; 1 from ``total_steps`` on (timm may add cooldown epochs).

        Raises:
            RuntimeError: it is unknown, and lambda(t) depends on it.
        """
        if self.total_steps is not None:
            return min(1.0, self._step / self.total_steps)
        if self._progress is not None:
            return self._progress
        schedule = self.distillation.schedule
        constant = schedule.kind == "constant" and schedule.warmup == 0.0
        if self.teacher is None or constant or schedule.weight == 0.0:
            return 0.0
        raise RuntimeError(
            f"the schedule {schedule.kind!r} needs the progress of training: "
            "give total_steps=epochs * len(loader), or call set_progress() before each epoch"
        )

    def set_progress(self, progress: float) -> None:
        """Say how much of training is done; with ``total_steps``, counting goes on from there.

        Args:
            progress: fraction in [0, 1], say ``epoch / epochs``.

        Raises:
            ValueError: ``progress`` is NaN or outside [0, 1].
        """
        self.distillation.schedule(progress)  # checks the range
        progress = min(max(float(progress), 0.0), 1.0)
        if self.total_steps is None:
            self._progress = progress
        else:
            self._step = round(progress * self.total_steps)

    def check(self, sample: Tensor) -> None:
        """:meth:`icnets.distill.loss.Teacher.check` on a batch of the loader's input; without a teacher, nothing."""
        if self.teacher is not None:
            self.teacher.check(self.trainable_module, sample)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One training step's forward; a call in training mode with gradients counts as a step.

        Args:
            input: ``(N, C_in, ...)``, normalised for the student.
            target: ``(N,)`` int64, or ``(N, C)`` floating.

        Returns:
            ``loss``, ``output`` (the student's logits), ``task_loss`` (cross-entropy), ``kd_loss`` (T^2 * KL before
            weighting; 0 when off) and ``kd_weight`` (lambda(t)).

        Raises:
            RuntimeError: see :attr:`progress`. ValueError, TypeError: see :meth:`WeakLogitDistillation.terms`.
        """
        progress = self.progress
        output = self.trainable_module(input)
        teacher = self.teacher if self.distillation.needs_teacher(progress) else None
        terms = self.distillation.terms(output, None if teacher is None else teacher(input), target, progress)
        if self.training and torch.is_grad_enabled():
            self._step += 1
        weight = torch.full_like(terms.loss.detach(), terms.weight)
        losses = {"loss": terms.loss, "task_loss": terms.task, "kd_loss": terms.distillation, "kd_weight": weight}
        return {"output": output, **losses}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> WeakLogitDistillationTask:
        """Wrap the student in DistributedDataParallel; the teacher needs none. Returns the task."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # the signature is timm's
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile student and teacher, before ``prepare_distributed``; returns the student for validation."""
        compiled: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = self.eval_model = compiled
        if self.teacher is not None:
            self.teacher.compile(backend=backend, mode=mode, **compile_kwargs)
        return self.trainable_module

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The progress and the surpass-stop, for the checkpoint; the averaged student (``ema``) has no own."""
        state = {"step": self._step, "progress": self._progress, "distillation": self.distillation.state_dict()}
        return {} if ema else state

    def load_task_state(
        self, state: Mapping[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Go on where the checkpoint was; one without a task state (a plain student's) leaves the start as it is."""
        if ema:
            return
        if not state:
            _logger.warning("the checkpoint tells no progress of distillation: call set_progress() to resume it")
            return
        missing = {"step", "progress", "distillation"} - state.keys()
        if missing:
            raise RuntimeError(f"the checkpoint's task state lacks {', '.join(sorted(missing))}: is it another task's?")
        self._step, self._progress = int(state["step"]), state["progress"]
        self.distillation.load_state_dict(state["distillation"], strict=strict)


def _as_teacher(teacher: nn.Module, student: nn.Module) -> Teacher:
    network = unwrap_model(teacher.model if isinstance(teacher, Teacher) else teacher)
    taken = teacher.classes if isinstance(teacher, Teacher) else None
    classes = [getattr(student, "num_classes", None), len(taken) if taken else getattr(network, "num_classes", None)]
    if all(isinstance(count, int) for count in classes) and classes[0] != classes[1]:
        raise ValueError(
            f"the student has {classes[0]} classes and the teacher {classes[1]}: "
            "distillation needs the same classes in the same order"
        )
    require_independent(network, student)  # first of all, since a Teacher freezes what it gets
    if isinstance(teacher, Teacher):
        return teacher
    cfgs = [getattr(model, "pretrained_cfg", None) or {} for model in (network, student)]
    values = [tuple(cfg.get(name) or ()) for cfg in cfgs for name in ("mean", "std")]
    if not all(values) or values[:2] == values[2:]:
        return Teacher(teacher)
    return Teacher(teacher, **dict(zip(("mean", "std", "student_mean", "student_std"), values, strict=True)))
