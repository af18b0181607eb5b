"""Classes that logits mask by -inf: the loss and its gradient are those without them, or an error says why not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icnets.distill.loss import DistillationSchedule, Teacher, WeakLogitDistillation

CONSTANT = DistillationSchedule("constant")
SOME: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"label_smoothing": 0.1},
    {"standardize": True},
    {"correct_only": True},
    {"standardize": True, "correct_only": True, "label_smoothing": 0.2, "temperature": 0.7},
]


def loss(options: dict[str, Any], student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
    return WeakLogitDistillation(schedule=CONSTANT, **options)(student, teacher, target, 0.0)


def masked(logits: Tensor, *classes: int) -> Tensor:
    return logits.index_fill(1, torch.tensor(classes, dtype=torch.int64), -math.inf)


@pytest.mark.parametrize("options", SOME)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_are_those_without_the_class(
    options: dict[str, Any], dtype: torch.dtype, soft: bool
) -> None:
    student, teacher = torch.randn(6, 5).to(dtype), torch.randn(6, 5).to(dtype)
    keep, labels = [0, 2, 4], torch.tensor([0, 1, 2, 0, 1, 2])
    kept = torch.randn(6, 3).softmax(1).double()
    target = torch.zeros(6, 5, dtype=torch.float64).index_copy(1, torch.tensor(keep), kept)
    x = student.clone().requires_grad_()
    found = loss(options, masked(x, 1, 3), masked(teacher, 1, 3), target if soft else torch.tensor(keep)[labels])
    found.backward()
    y = student[:, keep].double().requires_grad_()
    wanted = loss(options, y, teacher[:, keep].double(), kept if soft else labels)
    wanted.backward()
    assert x.grad is not None
    assert y.grad is not None
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found.double(), wanted, rtol=precision, atol=precision)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(x.grad[:, keep].double(), y.grad, rtol=rounding, atol=rounding)
    assert not x.grad[:, [1, 3]].any()


@pytest.mark.parametrize("options", SOME)
def test_each_sample_may_have_its_own_mask(options: dict[str, Any]) -> None:
    student, teacher = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    labels, masks = [0, 1, 4], [(1, 2, 3), (4,), ()]
    rows, alone = [], []
    for i, (label, mask) in enumerate(zip(labels, masks, strict=True)):
        keep = [c for c in range(5) if c not in mask]
        rows.append((masked(student[i : i + 1], *mask), masked(teacher[i : i + 1], *mask)))
        position = torch.tensor([keep.index(label)])
        alone.append(loss(options, student[i : i + 1, keep], teacher[i : i + 1, keep], position))
    both = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    torch.testing.assert_close(loss(options, *both, torch.tensor(labels)), torch.stack(alone).mean())


def test_a_class_that_the_teacher_alone_leaves_out_has_probability_zero() -> None:
    student, teacher, target = torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 0, 1])
    x = student.requires_grad_()
    found = loss({}, x, masked(teacher, 2), target)
    p, log_q = (teacher[:, :2] / 4).softmax(1), (student / 4).log_softmax(1)[:, :2]
    wanted = loss({}, student, None, target) + 16 * (p * (p.log() - log_q)).sum(1).mean()
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(found, x)[0].isfinite().all()


def test_a_mask_that_half_precision_made_of_a_large_number() -> None:
    big = torch.tensor([0.0, 0.0, 0.0, -1e9])
    student, teacher, target = (torch.randn(4, 4) + big).half(), torch.randn(4, 4) + big, torch.tensor([0, 1, 2, 0])
    assert student[0, 3] == -math.inf
    wanted = loss({}, student[:, :3], teacher[:, :3], target)
    torch.testing.assert_close(loss({}, student, teacher, target), wanted)


def test_dense_prediction_and_places_without_a_label() -> None:
    student, teacher = (masked(torch.randn(2, 4, 3, 3).double(), 3) for _ in range(2))
    target = torch.randint(3, (2, 3, 3))
    target[0, 0] = -100
    for options in SOME:
        found = loss(options, student, teacher, target)
        torch.testing.assert_close(found, loss(options, student[:, :3], teacher[:, :3], target))


def test_without_reading_values_the_mask_is_kept_too() -> None:
    student, teacher, target = masked(torch.randn(4, 4), 3), masked(torch.randn(4, 4), 3), torch.tensor([0, 1, 2, 0])
    for options in SOME:  # compiled, nothing is read; as on a GPU
        loss_fn = WeakLogitDistillation(schedule=CONSTANT, **options)
        found = torch.compile(loss_fn, backend="eager", fullgraph=True)(student, teacher, target, 0.0)
        torch.testing.assert_close(found, loss_fn(student[:, :3], teacher[:, :3], target, 0.0))
    assert torch.compile(loss_fn, backend="eager")(masked(student, 0), teacher, target, 0.0) == math.inf


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("options", "student", "teacher", "target", "message"),
    [
        ({}, (3,), (), LABELS, "-inf for class 3, to which the teacher gives a probability: mask it in both"),
        ({"standardize": True}, (2,), (3,), LABELS, "-inf for class 2, to which the teacher gives"),
        ({}, (1,), (1,), LABELS, "the target wants class 1, which the student's logits mask by -inf in sample 1"),
        ({"label_smoothing": 0.1}, (0,), (0,), LABELS, "the target wants class 0, which .* in sample 0"),
        ({}, (1,), (1,), torch.full((2, 4), 0.25), "the target wants class 1, which the student's"),
        ({}, (0, 1, 2, 3), (0, 1, 2, 3), LABELS, "the student's logits are -inf for all classes of a sample"),
        ({}, (), (0, 1, 2, 3), LABELS, "the teacher's logits are -inf for all classes of a sample"),
        ({"task_loss": nn.CrossEntropyLoss()}, (3,), (3,), LABELS, "which a task_loss can't take"),
    ],
)
def test_masks_that_leave_no_finite_loss(
    options: dict[str, Any], student: tuple[int, ...], teacher: tuple[int, ...], target: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(options, masked(torch.randn(2, 4), *student), masked(torch.randn(2, 4), *teacher), target)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_teacher_that_gives_no_numbers(value: float) -> None:
    teacher = torch.randn(2, 4)
    teacher[1, 2] = value
    with pytest.raises(ValueError, match="teacher's logits hold NaN or \\+inf: check its weights"):
        loss({}, torch.randn(2, 4), teacher, LABELS)


class Masking(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return masked(super().forward(x), 3)


def test_a_masking_teacher_passes_its_check() -> None:
    Teacher(Masking(3, 4)).check(Masking(3, 4), torch.randn(2, 3))
