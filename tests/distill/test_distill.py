"""The loss against a plain reference in pure Python, its precision, the surpass-stop, and what it refuses."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from icnets.distill.loss import DistillationSchedule, WeakLogitDistillation

CONSTANT = DistillationSchedule("constant", weight=1.0)
KINDS = ("hold-cosine", "constant", "linear", "cosine", "early-off")
Rows = list[list[float]]


# --- reference: plain Python floats, one sample and one class at a time ----------------------------------------------


def softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    return [e / math.fsum(exps) for e in exps]


def z_score(row: Sequence[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row))
    return [(v - mean) / std for v in row]


def reference_loss(
    student: Rows,
    teacher: Rows,
    target: Rows,
    weight: float,
    temperature: float,
    standardize: bool = False,
    correct_only: bool = False,
) -> float:
    """``target`` as probabilities; the batch mean of CE + weight T^2 KL."""
    total = 0.0
    for s, t, q in zip(student, teacher, target, strict=True):
        for p, wanted in zip(softmax(s), q, strict=True):
            total -= wanted * math.log(p)
        if correct_only and t.index(max(t)) != q.index(max(q)):
            continue
        if standardize:
            s, t = z_score(s), z_score(t)
        p_s, p_t = softmax([v / temperature for v in s]), softmax([v / temperature for v in t])
        total += weight * temperature**2 * math.fsum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
    return total / len(student)


def reference_gradient(student: Rows, teacher: Rows, *args: object, **kwargs: bool) -> Rows:
    """Central differences of :func:`reference_loss` in the student's logits."""
    step, gradient = 2e-5, [[0.0] * len(row) for row in student]
    for i, row in enumerate(student):
        for k in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in student]
                moved[i][k] += sign * step
                values.append(reference_loss(moved, teacher, *args, **kwargs))  # type: ignore[arg-type]
            gradient[i][k] = (values[0] - values[1]) / (2 * step)
    return gradient


def one_hot(labels: list[int], classes: int, smoothing: float) -> Rows:
    return [[(k == label) * (1 - smoothing) + smoothing / classes for k in range(classes)] for label in labels]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Rows, Rows, list[int], Rows]:
    n, c = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    logits = st.integers(-48, 48).map(lambda v: v / 8)
    rows = st.lists(st.lists(logits, min_size=c, max_size=c), min_size=n, max_size=n)
    labels = draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n))
    soft = [softmax(row) for row in draw(rows)]
    return draw(rows), draw(rows), labels, soft


@settings(max_examples=150, deadline=None)
@given(
    case=cases(),
    temperature=st.floats(0.5, 8.0),
    weight=st.floats(0.0, 3.0),
    smoothing=st.floats(0.0, 0.5),
    soft=st.booleans(),
    standardize=st.booleans(),
    correct_only=st.booleans(),
)
def test_value_and_gradient_equal_the_reference(
    case: tuple[Rows, Rows, list[int], Rows],
    temperature: float,
    weight: float,
    smoothing: float,
    soft: bool,
    standardize: bool,
    correct_only: bool,
) -> None:
    student, teacher, labels, probabilities = case
    classes = len(student[0])
    if standardize:  # a row of equal logits has no z-score; tested on its own below
        assume(all(len(set(row)) > 1 for row in student + teacher))
    if correct_only:  # ties have no argmax
        assume(all(sorted(row)[-1] > sorted(row)[-2] for row in teacher + (probabilities if soft else [])))
    target = probabilities if soft else one_hot(labels, classes, smoothing)
    loss_fn = WeakLogitDistillation(
        temperature=temperature,
        schedule=DistillationSchedule("constant", weight=weight),
        label_smoothing=smoothing,
        standardize=standardize,
        correct_only=correct_only,
    )
    x = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(probabilities, dtype=torch.float64) if soft else torch.tensor(labels)
    loss = loss_fn(x, torch.tensor(teacher, dtype=torch.float64), y, 0.3)
    (gradient,) = torch.autograd.grad(loss, x)

    options = {"standardize": standardize, "correct_only": correct_only}
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(
        reference_loss(student, teacher, target, weight, temperature, **options), rel=1e-6, abs=1e-6
    )
    expected = torch.tensor(reference_gradient(student, teacher, target, weight, temperature, **options))
    torch.testing.assert_close(gradient, expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_the_gradient_is_bounded_by_twice_weight_times_temperature(temperature: float) -> None:
    """And nearly reaches it; cross-entropy's is bounded by 2. So the default of weight and T bounds both alike."""
    schedule = DistillationSchedule("constant", weight=0.3)
    loss_fn = WeakLogitDistillation(temperature=temperature, schedule=schedule)
    student = (60 * temperature * torch.randn(500, 3, dtype=torch.float64)).requires_grad_()
    terms = loss_fn.terms(student, student.detach().roll(1, 1), torch.randint(3, (500,)), 0.5)
    norms = [
        500 * torch.autograd.grad(term, student, retain_graph=True)[0].abs().sum(1)
        for term in (terms.task, terms.weight * terms.distillation)
    ]
    for norm, bound in zip(norms, (2, 2 * 0.3 * temperature), strict=True):
        assert 0.99 * bound < float(norm.max()) <= bound * (1 + 1e-9)


def test_the_schedule_weighs_the_terms() -> None:
    student, teacher, target = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 4
    loss_fn = WeakLogitDistillation(temperature=2.0, schedule=DistillationSchedule("linear", weight=0.5))
    terms = loss_fn.terms(student, teacher, target, 0.25)
    rows = (student.tolist(), teacher.tolist(), one_hot(target.tolist(), 4, 0.0))
    assert terms.weight == pytest.approx(0.375)
    assert terms.task.item() == pytest.approx(reference_loss(*rows, 0.0, 2.0), rel=1e-6)
    assert terms.distillation.item() == pytest.approx(
        reference_loss(*rows, 1.0, 2.0) - reference_loss(*rows, 0.0, 2.0), rel=1e-5
    )
    torch.testing.assert_close(terms.loss, terms.task + 0.375 * terms.distillation)
    torch.testing.assert_close(loss_fn(student, teacher, target, 0.25), terms.loss)


def test_without_teacher_it_is_cross_entropy() -> None:
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, -100])
    loss_fn = WeakLogitDistillation(label_smoothing=0.1)
    assert torch.equal(loss_fn(logits, None, target, 0.0), F.cross_entropy(logits, target, label_smoothing=0.1))
    soft = torch.rand(5, 3).softmax(1)
    assert torch.equal(loss_fn(logits, None, soft, 1.0), F.cross_entropy(logits, soft))


def test_at_weight_zero_the_teacher_has_no_part() -> None:
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    terms = WeakLogitDistillation().terms(logits, torch.full((5, 3), math.nan), target, 1.0)
    assert (terms.weight, terms.distillation.item()) == (0.0, 0.0)
    assert torch.equal(terms.loss, F.cross_entropy(logits, target))


def test_the_gradient_goes_to_the_student_only() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    WeakLogitDistillation()(student, teacher, torch.tensor([0, 1, 2, 0]), 0.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_equal_logits_are_a_minimum_of_the_distillation() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    terms = WeakLogitDistillation().terms(logits, logits.detach(), torch.arange(4), 0.0)
    (gradient,) = torch.autograd.grad(terms.distillation, logits)
    assert terms.distillation.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_correct_only_drops_wrong_samples_and_still_divides_by_the_batch() -> None:
    student = torch.randn(4, 3, dtype=torch.float64)
    teacher = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [5, 0, 0]], dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 2])  # the last two are wrong
    both = [WeakLogitDistillation(schedule=CONSTANT, correct_only=flag) for flag in (True, False)]
    masked = both[0].terms(student, teacher, target, 0.0).distillation
    right = both[1].terms(student[:2], teacher[:2], target[:2], 0.0).distillation
    torch.testing.assert_close(masked, right * 2 / 4)
    soft = F.one_hot(target, 3) * 0.7 + 0.1
    torch.testing.assert_close(both[0].terms(student, teacher, soft.double(), 0.0).distillation, masked)
    wrong = both[0].terms(student[2:], teacher[2:], target[2:], 0.0)
    assert wrong.distillation.item() == 0.0


@given(shift=st.floats(-50, 50), scale=st.floats(0.1, 20))
@settings(max_examples=30, deadline=None)
def test_standardised_distillation_ignores_shift_and_scale_of_either_network(shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    target = torch.zeros(4, dtype=torch.int64)
    loss_fn = WeakLogitDistillation(schedule=CONSTANT, standardize=True)
    plain = loss_fn.terms(student, teacher, target, 0.0)
    for moved in ((student * scale + shift, teacher), (student, teacher * scale + shift)):
        torch.testing.assert_close(loss_fn.terms(*moved, target, 0.0).distillation, plain.distillation)
    assert loss_fn.terms(teacher * scale + shift, teacher, target, 0.0).distillation.item() < 1e-12
    assert plain.distillation.item() > 0.01


def test_standardised_distillation_bears_a_zero_initialised_head() -> None:
    student = torch.zeros(4, 5, requires_grad=True)
    WeakLogitDistillation(standardize=True)(student, torch.randn(4, 5), torch.arange(4), 0.0).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3


def test_dense_prediction_equals_one_sample_per_position() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 4))
    loss_fn = WeakLogitDistillation(schedule=CONSTANT, correct_only=True, standardize=True)

    def flat(x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(-1, 5)

    torch.testing.assert_close(
        loss_fn(student, teacher, labels, 0.0), loss_fn(flat(student), flat(teacher), labels.flatten(), 0.0)
    )


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision_logits_give_a_float32_loss(dtype: torch.dtype, soft: bool) -> None:
    student = (torch.randn(8, 10) * 2e4).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    teacher = (torch.randn(8, 10) * 2e4).clamp(-6e4, 6e4).to(dtype)
    target = torch.rand(8, 10).softmax(1).to(dtype) if soft else torch.arange(8)
    loss_fn = WeakLogitDistillation(temperature=4.0, schedule=CONSTANT)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_fn(student, teacher, target, 0.0)
    loss.backward()
    exact = loss_fn(student.double(), teacher.double(), target.double() if soft else target, 0.0)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_teacher_in_half_precision_teaches_a_float32_student() -> None:
    student, teacher, target = torch.randn(4, 3), torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0])
    loss_fn = WeakLogitDistillation()
    assert torch.equal(loss_fn(student, teacher, target, 0.0), loss_fn(student, teacher.float(), target, 0.0))


def test_compiles_without_graph_breaks() -> None:
    loss_fn = WeakLogitDistillation(standardize=True, correct_only=True, surpass_patience=2)
    student, teacher, target = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    compiled = torch.compile(loss_fn, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher, target, 0.6), loss_fn(student, teacher, target, 0.6))


# --- surpass-stop ----------------------------------------------------------------------------------------------------


def test_surpass_stop_needs_consecutive_validations_and_is_for_good() -> None:
    loss_fn = WeakLogitDistillation(surpass_patience=2)
    assert [loss_fn.observe(s, 0.8) for s in (0.9, 0.7, 0.8)] == [False, False, False]
    assert loss_fn.needs_teacher(0.0)
    assert loss_fn.observe(torch.tensor(0.8), torch.tensor(0.8))
    assert loss_fn.observe(0.1, 0.8)
    assert not loss_fn.needs_teacher(0.0)
    student, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(loss_fn(student, torch.randn(4, 3), target, 0.0), F.cross_entropy(student, target))


def test_surpass_stop_survives_a_checkpoint() -> None:
    first = WeakLogitDistillation(surpass_patience=2)
    first.observe(0.9, 0.8)
    second = reload(first)
    assert second.observe(0.9, 0.8)  # the second in a row, across the checkpoint
    third = reload(second)
    assert third.stopped
    assert not third.needs_teacher(0.0)
    third.load_state_dict(WeakLogitDistillation().state_dict())
    assert third.needs_teacher(0.0)


def reload(loss_fn: WeakLogitDistillation) -> WeakLogitDistillation:
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    result = WeakLogitDistillation(surpass_patience=2)
    result.load_state_dict(torch.load(file, weights_only=True))
    return result


def test_without_patience_nothing_stops() -> None:
    loss_fn = WeakLogitDistillation()
    assert not any(loss_fn.observe(1.0, 0.0) for _ in range(5))
    assert loss_fn.needs_teacher(0.0)
    with pytest.raises(ValueError, match=r"accuracies must be finite, got nan \(student\) and 0.5"):
        loss_fn.observe(math.nan, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_needs_teacher_where_the_weight_is_positive(kind: str) -> None:
    loss_fn = WeakLogitDistillation(schedule=DistillationSchedule(kind))  # type: ignore[arg-type]
    assert loss_fn.needs_teacher(0.1)
    assert loss_fn.needs_teacher(1.0) == (kind == "constant")
    assert not WeakLogitDistillation(schedule=DistillationSchedule(weight=0.0)).needs_teacher(0.1)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, r"temperature must be in \(0, inf\), got 0.0"),
        ({"temperature": math.inf}, ValueError, r"temperature must be in \(0, inf\), got inf"),
        ({"temperature": "4"}, TypeError, r"temperature must be a number in \(0, inf\), got '4'"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"surpass_patience": 0}, ValueError, r"surpass_patience must be an int >= 1 or None, got 0"),
        ({"surpass_patience": 2.0}, ValueError, r"surpass_patience must be an int >= 1 or None, got 2.0"),
        ({"schedule": "cosine"}, TypeError, r"schedule must be a DistillationSchedule, got str"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WeakLogitDistillation(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "teacher", "target", "message"),
    [
        (torch.zeros(2, 10), torch.zeros(2, 100), torch.zeros(2).long(), "student has 10 classes and the teacher 100"),
        (torch.zeros(2, 10), torch.zeros(3, 10), torch.zeros(2).long(), r"one shape, got \(2, 10\) and \(3, 10\)"),
        (torch.zeros(10), None, torch.tensor(0), r"student logits must be floating and \(N, C, ...\)"),
        (torch.zeros(2, 3).long(), None, torch.zeros(2).long(), "student logits must be floating.*torch.int64"),
        (torch.zeros(2, 3), None, torch.zeros(3).long(), r"for logits \(2, 3\) must be \(2,\), got \(3,\)"),
        (torch.zeros(2, 3), None, torch.zeros(2, 4), r"the logits' shape \(2, 3\), got \(2, 4\)"),
        (torch.zeros(2, 3), None, torch.zeros(2), r"the logits' shape \(2, 3\), got \(2,\)"),
        (torch.zeros(2, 3), None, torch.zeros(2).int(), "hard labels must be int64.*got torch.int32"),
        (
            (torch.zeros(2, 3),) * 2,
            None,
            torch.zeros(2).long(),
            "student logits must be a tensor .* alone, got a tuple of 2",
        ),
        ({"logits": 1}, None, torch.zeros(2).long(), "student logits must be a tensor .* got a dict of 1"),
        (None, None, torch.zeros(2).long(), "student logits must be a tensor .* got None"),
        (torch.zeros(2, 3), [[0.0] * 3] * 2, torch.zeros(2).long(), "teacher logits must be a tensor .* a list of 2"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3).long(),
            torch.zeros(2).long(),
            "teacher logits must be floating and .*int64",
        ),
        (torch.zeros(2, 3), None, [0, 1], r"target must be a tensor of labels .* \(2, 3\), got a list of 2"),
        (torch.zeros(2, 3), None, 1, "target must be a tensor .* got a value of type int"),
        (torch.zeros(2, 3), None, torch.ones(2).bool(), "hard labels must be int64.*got torch.bool"),
        (torch.zeros(0, 3), None, torch.zeros(0).long(), r"logits are \(0, 3\): an empty batch has no loss"),
    ],
)
def test_inputs_that_do_not_fit(student: Any, teacher: Any, target: Any, message: str) -> None:
    no_tensor = "must be a tensor" in message or "hard labels must be int64" in message
    with pytest.raises(TypeError if no_tensor else ValueError, match=message):
        WeakLogitDistillation()(student, teacher, target, 0.0)
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        WeakLogitDistillation()(torch.zeros(2, 3), None, torch.zeros(2).long(), 2.0)
    with pytest.raises(TypeError, match="NoneType"):
        WeakLogitDistillation()(torch.zeros(2, 3), None, torch.zeros(2).long(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="could not convert string to float: '90 %'"):
        WeakLogitDistillation().observe("90 %", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_teacher_that_gives_no_numbers(value: float) -> None:
    student, teacher, target = torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, 1])
    teacher[1, 2] = value
    with pytest.raises(ValueError, match="teacher's logits are not finite: check its weights"):
        WeakLogitDistillation()(student, teacher, target, 0.0)
    student[1, 2] = math.nan  # the inputs may be the cause, which the loss shows
    assert WeakLogitDistillation()(student, teacher, target, 0.0).isnan()


def test_classes_that_logits_leave_out_count_for_nothing() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([0.0, 0.0, 0.0, float("-inf")])
    student, teacher = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
    target, wld = torch.tensor([0, 1, 2, 0]), WeakLogitDistillation()
    found = wld(student + mask, teacher + mask, target, 0.0)
    wanted = wld(student[:, :3], teacher[:, :3], target, 0.0)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients)
