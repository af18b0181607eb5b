"""Weak logit distillation (WLD): a trained basic network speeds up the start of its IC version.

    L = CE(student, target) + lambda(t) * T^2 * KL(softmax(teacher / T) || softmax(student / T))

with ``t`` the progress of training in [0, 1]. "Weak", because the teacher is the weaker network: it is to speed the
start up, not to cap the end, so ``lambda`` is held first and then goes to 0.

Paper (arXiv 2102.03495): that IC networks are trained faster by "extracting knowledge from pre-trained basic models".
Its loss and schedule are not public: the formula above, the schedules and the options are our own.

Three pieces that work alone: :class:`DistillationSchedule` is lambda(t), :class:`WeakLogitDistillation` the loss, and
:class:`Teacher` (in ``teacher.py``) a frozen network.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets.distill import logits
from icnets.distill.teacher import Teacher

__all__ = ["DistillationSchedule", "DistillationTerms", "Teacher", "WeakLogitDistillation"]

ScheduleKind = Literal["hold-cosine", "constant", "linear", "cosine", "early-off"]

# Asked once, since older compilers can't trace the question.
_AUTOCAST_DEVICES = frozenset(d for d in ("cpu", "cuda", "mps", "xpu", "hpu") if torch.amp.is_autocast_available(d))
# Logits flatter than this count as this wide: a zero-initialised head has std 0, and 1 / std would be its gradient.
_MIN_LOGIT_STD = 1e-2
_ROUNDING = 1e-6  # how far the progress may lie outside [0, 1], as step / total computed in float32 does


def _require_number(name: str, value: object, interval: str) -> None:
    """Raises TypeError or ValueError where ``value`` is no number in ``interval``, such as "[0, 1)"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    low, high = map(float, interval[1:-1].split(","))
    outside = {"(": low, ")": high}
    if not low <= value <= high or value in [outside.get(bracket) for bracket in (interval[0], interval[-1])]:
        raise ValueError(f"{name} must be in {interval}, got {value}")


@dataclass(frozen=True)
class DistillationSchedule:
    """lambda(t), the weight of the distillation over the progress ``t`` of training in [0, 1].

    It rises linearly from 0 over the first ``warmup`` of training (0: no warm-up) and then follows ``kind``:

    * ``"hold-cosine"``: ``weight`` until ``hold``, then a cosine to 0 at the end of training (1: held to the end);
    * ``"constant"``: ``weight`` to the end;
    * ``"linear"`` and ``"cosine"``: from ``weight`` at the end of the warm-up to 0 at the end of training;
    * ``"early-off"``: ``weight`` before ``off``, exactly 0 from there on.

    Args:
        kind: the shape, see above.
        weight: the largest value, finite and >= 0. The default is 1 / T of the loss's default T: more, and the
            distillation's gradient could exceed cross-entropy's, which needs a lower learning rate.
        warmup: fraction of training in [0, 1); at most ``hold`` or ``off`` where that ends the plateau.
        hold: fraction of training in [0, 1]; read by ``"hold-cosine"``.
        off: fraction of training in [0, 1]; read by ``"early-off"``.

    Raises:
        ValueError, TypeError: a value outside its range, which the message names.

    Example:
        >>> schedule = DistillationSchedule("hold-cosine", hold=0.4)
        >>> [round(schedule(t), 3) for t in (0.0, 0.4, 0.7, 1.0)]
        [0.25, 0.25, 0.125, 0.0]
    """

    kind: ScheduleKind = "hold-cosine"
    weight: float = 0.25
    warmup: float = 0.0
    hold: float = 0.4
    off: float = 0.5

    def __post_init__(self) -> None:
        kinds = get_args(ScheduleKind)
        if self.kind not in kinds:
            raise ValueError(f"schedule kind must be one of {', '.join(kinds)}, got {self.kind!r}")
        for name, interval in {"weight": "[0, inf)", "warmup": "[0, 1)", "hold": "[0, 1]", "off": "[0, 1]"}.items():
            _require_number(name, getattr(self, name), interval)
        for kind, name, end in (("hold-cosine", "hold", self.hold), ("early-off", "off", self.off)):
            if self.kind == kind and self.warmup > end:
                raise ValueError(f"warmup must be in [0, {name}] = [0, {end}] for {kind!r}, got {self.warmup}")

    def __call__(self, progress: float) -> float:
        """Computes lambda(``progress``).

        Args:
            progress: fraction of training done, in [0, 1]; rounding errors up to 1e-6 outside are forgiven.

        Raises:
            ValueError: ``progress`` is NaN or outside [0, 1].
        """
        t = float(progress)
        if not -_ROUNDING <= t <= 1.0 + _ROUNDING:
            raise ValueError(f"progress must be in [0, 1] (steps done / steps in total), got {t}")
        t = min(max(t, 0.0), 1.0)
        return self.weight * t / self.warmup if t < self.warmup else self.weight * self._plateau_and_decay(t)

    def _plateau_and_decay(self, t: float) -> float:
        if self.kind == "early-off":
            return 1.0 if t < self.off else 0.0
        if self.kind == "linear":
            return (1.0 - t) / (1.0 - self.warmup)
        if self.kind == "constant":
            return 1.0
        start = self.hold if self.kind == "hold-cosine" else self.warmup
        if t <= start:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (t - start) / (1.0 - start)))


_DEFAULT_SCHEDULE = DistillationSchedule()


def _z_score(logits: Tensor) -> Tensor:
    """Standardises over the classes."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).clamp_min(_MIN_LOGIT_STD**2).sqrt()


class DistillationTerms(NamedTuple):
    """``loss = task + weight * distillation``; the tensors are scalars and carry their graphs.

    ``distillation`` is ``T^2 * KL`` before it is weighted, and 0 where ``weight`` is 0, as it is not computed then.
    """

    loss: Tensor
    task: Tensor
    distillation: Tensor
    weight: float


class WeakLogitDistillation(nn.Module):
    """The loss ``CE + lambda(t) * T^2 * KL(teacher / T || student / T)``, averaged over the batch.

    Everything is computed in float32 (float64 for float64 logits), under autocast as well. The gradient flows to the
    student's logits only.

    Args:
        temperature: T > 0.
        schedule: lambda(t).
        label_smoothing: in [0, 1), for hard labels; soft targets are taken as they are, since a loader that mixes
            images smooths its labels itself.
        standardize: compare the z-scores (over the classes, per sample) of both networks' logits instead of the
            logits: "Logit Standardization in Knowledge Distillation", arXiv 2403.01993. The student then need not
            match the teacher's mean and spread.
        correct_only: only samples that the teacher classifies correctly contribute to the KL (for soft targets: its
            largest logit is at the target's largest probability). The average is still over the whole batch, so a
            sample weighs the same in any company.
        surpass_patience: switch the distillation off for good after this many validations in a row in which the
            student is at least as good as its teacher (2 is a good value); see :meth:`observe`. None: never. The
            count is part of the state dict.
        task_loss: what stands in the place of CE: ``(logits (N, C), target) -> scalar`` on float32 logits and the
            target as it comes, such as timm's ``BinaryCrossEntropy``. It smooths labels itself.

    Raises:
        ValueError, TypeError: an argument outside its range, which the message names.

    Example:
        >>> loss = WeakLogitDistillation(temperature=2.0)
        >>> student, teacher, target = torch.zeros(4, 10), torch.zeros(4, 10), torch.arange(4)
        >>> round(float(loss(student, teacher, target, progress=0.0)), 4)  # the logarithm of 10
        2.3026
    """

    surpass_streak: Tensor
    surpass_stopped: Tensor

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        schedule: DistillationSchedule = _DEFAULT_SCHEDULE,
        label_smoothing: float = 0.0,
        standardize: bool = False,
        correct_only: bool = False,
        surpass_patience: int | None = None,
        task_loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _require_number("temperature", temperature, "(0, inf)")
        _require_number("label_smoothing", label_smoothing, "[0, 1)")
        if not isinstance(schedule, DistillationSchedule):
            raise TypeError(f"schedule must be a DistillationSchedule, got {type(schedule).__name__}")
        if surpass_patience is not None and (type(surpass_patience) is not int or surpass_patience < 1):
            raise ValueError(f"surpass_patience must be an int >= 1 or None, got {surpass_patience!r}")
        if task_loss is not None and label_smoothing:
            raise ValueError(f"label_smoothing is {label_smoothing} beside a task_loss, which smooths labels itself")
        self.temperature = float(temperature)
        self.task_loss = task_loss
        self.schedule = schedule
        self.label_smoothing = float(label_smoothing)
        self.standardize = standardize
        self.correct_only = correct_only
        self.surpass_patience = surpass_patience
        self.register_buffer("surpass_streak", torch.zeros((), dtype=torch.int64))
        self.register_buffer("surpass_stopped", torch.zeros((), dtype=torch.bool))
        # The buffers are what checkpoints keep; this copy spares every training step a wait for the GPU.
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether the surpass-stop has switched the distillation off."""
        return self._stopped and self.surpass_patience is not None

    def weight_at(self, progress: float) -> float:
        """Returns the weight in force at ``progress`` in [0, 1]: lambda(t), or 0 after the surpass-stop."""
        weight = self.schedule(progress)  # which checks the progress
        return 0.0 if self.stopped else weight

    def needs_teacher(self, progress: float) -> bool:
        """Whether the teacher matters at ``progress`` in [0, 1]; where not, its forward can be left out."""
        return self.weight_at(progress) > 0.0

    def observe(self, student_accuracy: float | Tensor, teacher_accuracy: float | Tensor) -> bool:
        """Decides on the surpass-stop; to be called once per validation.

        Args:
            student_accuracy: in distributed training the value reduced over all processes, so that every process
                decides alike.
            teacher_accuracy: on the same data and in the same unit.

        Returns:
            Whether the distillation is off; always False without ``surpass_patience``.

        Raises:
            ValueError: an accuracy is NaN or infinite.
        """
        student, teacher = float(student_accuracy), float(teacher_accuracy)
        if not (math.isfinite(student) and math.isfinite(teacher)):
            raise ValueError(f"accuracies must be finite, got {student} (student) and {teacher} (teacher)")
        if self.surpass_patience is None:
            return False
        with torch.no_grad():
            streak = int(self.surpass_streak) + 1 if student >= teacher else 0
            self._stopped = self._stopped or streak >= self.surpass_patience
            self.surpass_streak.fill_(streak)
            self.surpass_stopped.fill_(self._stopped)
        return self._stopped

    def forward(self, student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor, progress: float) -> Tensor:
        """Computes the loss, a scalar. Arguments and errors as in :meth:`terms`."""
        return self.terms(student_logits, teacher_logits, target, progress).loss

    def terms(
        self, student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor, progress: float
    ) -> DistillationTerms:
        """Computes the loss with its parts.

        Args:
            student_logits: ``(N, C)``, or ``(N, C, d1, ...)`` for dense prediction; any floating dtype.
            teacher_logits: of the same shape; None leaves the task's loss alone (the baseline without a teacher).
            target: hard labels ``(N,)`` or ``(N, d1, ...)``, int64 (-100 marks places without a label: the
                cross-entropy leaves them out, the teacher still teaches there); or soft targets of the logits'
                shape, floating.
            progress: fraction of training done, in [0, 1].

        Returns:
            Float32 terms; float64 for float64 student logits.

        Raises:
            ValueError, TypeError: shapes or dtypes that don't fit together, both named; an empty batch; and, on the
                CPU, where looking costs nothing, logits of the teacher that aren't finite. On a GPU the value tells.

        Example:
            >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
            >>> terms = WeakLogitDistillation().terms(student, teacher, torch.arange(4), progress=0.1)
            >>> terms.loss.backward()
            >>> terms.weight
            0.25
        """
        weight = self.weight_at(progress)
        logits.check_logits(student_logits, teacher_logits)
        soft = logits.check_target(student_logits, target)
        kind = student_logits.device.type
        with torch.autocast(kind, enabled=False) if kind in _AUTOCAST_DEVICES else nullcontext():
            dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
            student = student_logits.to(dtype)
            if soft:
                target = target.to(dtype)
            if self.task_loss is None:
                task = F.cross_entropy(student, target, label_smoothing=0.0 if soft else self.label_smoothing)
            else:
                task = self.task_loss(student, target)
            if teacher_logits is None or weight == 0.0:
                return DistillationTerms(task, task, torch.zeros_like(task), 0.0)
            labels = target.argmax(1) if soft else target
            distillation = self._distillation(student, teacher_logits.detach().to(dtype), labels)
            return DistillationTerms(task + weight * distillation, task, distillation, weight)

    def _distillation(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        # Where the student's aren't finite either, the inputs may be the cause, and the loss shows it.
        read = teacher.device.type == "cpu" and not torch.compiler.is_compiling()  # a GPU would have to be waited for
        if read and not teacher.isfinite().all() and student.isfinite().all():
            raise ValueError("the teacher's logits are not finite: check its weights and what normalisation it expects")
        correct = teacher.argmax(1) == labels if self.correct_only else None
        if self.standardize:
            student, teacher = _z_score(student), _z_score(teacher)
        log_s = F.log_softmax(student / self.temperature, dim=1)
        log_t = F.log_softmax(teacher / self.temperature, dim=1)
        masked = log_t.isneginf()  # classes that both leave out by logits of -inf, of which 0 * (inf - inf) is nan
        divergence = (log_t.exp() * (log_t.masked_fill(masked, 0) - log_s.masked_fill(masked, 0))).sum(1)
        if correct is not None:
            divergence = torch.where(correct, divergence, torch.zeros_like(divergence))
        return self.temperature**2 * divergence.mean()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.surpass_stopped.is_meta:
            self._stopped = bool(self.surpass_stopped)
