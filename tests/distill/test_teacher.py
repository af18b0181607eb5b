"""A teacher stays frozen, in eval mode and out of the student's state, and says early what does not fit."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from icnets.distill.loss import Teacher, WeakLogitDistillation

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTION = {"student_mean": (0.5, 0.5, 0.5), "student_std": (0.5, 0.5, 0.5)}


class Net(nn.Sequential):
    """Conv, batch norm, dropout, head: everything whose output depends on the mode."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__(
            nn.Conv2d(channels, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        )


class Pair(nn.Module):
    """What a task looks like: it owns a student and a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Net()
        self.teacher = Teacher(Net().train())


def images(n: int = 2, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 8, 8)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_training_step_leaves_a_teacher_given_in_train_mode_as_it_is() -> None:
    pair = Pair()
    before, student_before = state(pair.teacher.model), state(pair.student)
    optimizer = torch.optim.SGD([p for p in pair.parameters() if p.requires_grad], lr=0.1)
    pair.train()
    assert not pair.teacher.training
    assert not any(m.training for m in pair.teacher.model.modules())
    x, target = images(), torch.tensor([0, 1])
    logits = pair.teacher(x)
    WeakLogitDistillation()(pair.student(x), logits, target, 0.0).backward()
    optimizer.step()
    assert torch.equal(pair.teacher(x), logits)  # no dropout, and nothing moved
    assert_same_state(pair.teacher.model, before)
    assert not torch.equal(pair.student[0].weight, student_before["0.weight"])
    assert not pair.teacher(x.requires_grad_()).requires_grad


def test_a_teacher_set_to_train_behind_our_back_is_put_back() -> None:
    network = Net()
    teacher = Teacher(network)
    before = state(network)
    network.train()
    x = images()
    assert torch.equal(teacher(x), teacher(x))  # no dropout
    network[1].train()
    teacher(images())
    assert not any(m.training for m in network.modules())
    assert_same_state(network, before)


def test_the_parent_sees_nothing_of_the_teacher_but_moves_it() -> None:
    pair = Pair()
    student = {id(p) for p in pair.student.parameters()}
    pair.requires_grad_(True)
    assert {id(p) for p in pair.parameters() if p.requires_grad} == student
    assert not any(p.requires_grad for p in pair.teacher.model.parameters())
    before = state(pair.teacher.model)
    pair.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert_same_state(pair.teacher.model, before)
    pair.double()
    assert pair.teacher(images().double()).dtype == torch.float64
    pair.to("meta")
    assert all(p.is_meta for p in pair.teacher.model.parameters())


def test_the_state_dict_is_the_students_alone() -> None:
    pair = Pair()
    assert pair.teacher.state_dict() == {}
    assert set(pair.state_dict()) == {f"student.{key}" for key in pair.student.state_dict()}
    before = state(pair.teacher.model)
    saved = pair.state_dict()
    saved.update({f"teacher.model.{key}": value + 1 for key, value in pair.teacher.model.state_dict().items()})
    pair.load_state_dict(saved, strict=True)
    assert_same_state(pair.teacher.model, before)


def test_copies_and_pickles_carry_the_network() -> None:
    teacher = Teacher(Net(), **IMAGENET, **INCEPTION)
    x = images()
    copied = copy.deepcopy(teacher)
    assert copied.model is not teacher.model
    for other in (copied, pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(other(x), teacher(x))
        assert not any(p.requires_grad for p in other.model.parameters())


def test_compiles() -> None:
    teacher = Teacher(Net(), **IMAGENET, **INCEPTION)
    x = images()
    expected = teacher(x)
    torch.testing.assert_close(torch.compile(teacher, backend="eager", fullgraph=True)(x), expected)
    teacher.compile(backend="eager")
    torch.testing.assert_close(teacher(x), expected)


# --- normalisation ---------------------------------------------------------------------------------------------------


def normalized(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - torch.tensor(mean, dtype=x.dtype).view(shape)) / torch.tensor(std, dtype=x.dtype).view(shape)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_teacher_gets_its_own_normalisation(as_tensor: bool, dtype: torch.dtype) -> None:
    network = Net().to(dtype)
    options = {**IMAGENET, **INCEPTION}
    wrap = (lambda v: torch.tensor(v, dtype=dtype).view(1, -1, 1, 1)) if as_tensor else tuple
    teacher = Teacher(network, **{name: wrap(value) for name, value in options.items()})
    raw = images(4).to(dtype)
    expected = network(normalized(raw, *IMAGENET.values()))
    precision = 1e-6 if dtype == torch.float32 else 1e-12
    logits = teacher(normalized(raw, *INCEPTION.values()))
    torch.testing.assert_close(logits, expected, rtol=precision, atol=precision)
    assert not torch.allclose(network(normalized(raw, *INCEPTION.values())), expected, atol=1e-3)


def test_equal_normalisations_leave_the_input_untouched() -> None:
    teacher = Teacher(Net(), **IMAGENET, student_mean=IMAGENET["mean"], student_std=IMAGENET["std"])
    x = images()
    assert teacher.normalize(x) is x


def test_the_normalisation_is_not_rounded_with_the_network() -> None:
    teacher = Teacher(nn.Flatten(), **IMAGENET, **INCEPTION)
    x = normalized(images().double(), *INCEPTION.values())
    expected = teacher.normalize(x)
    teacher.bfloat16()
    assert torch.equal(teacher.normalize(x), expected)
    assert teacher.normalize(x.bfloat16()).dtype == torch.bfloat16


def test_sequences_and_volumes_are_normalised_too() -> None:
    teacher = Teacher(nn.Flatten(), mean=[1.0], std=[2.0], student_mean=[0.0], student_std=[1.0])
    for shape in ((2, 1), (2, 1, 5), (2, 1, 3, 4, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(teacher(x), ((x - 1) / 2).flatten(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (IMAGENET, ValueError, "give all of .* or none: student_mean, student_std missing"),
        (
            {**IMAGENET, "student_mean": [0.5], "student_std": [0.5]},
            ValueError,
            r"one number of channels, .*'student_mean': \(0.5,\)",
        ),
        ({**IMAGENET, **INCEPTION, "std": (0.2, 0.0, 0.2)}, ValueError, r"std must .* each > 0, got \(0.2, 0.0"),
        ({**IMAGENET, **INCEPTION, "mean": (math.nan, 0, 0)}, ValueError, r"mean must .* each finite, got \(nan"),
        ({**IMAGENET, **INCEPTION, "mean": 0.5}, ValueError, r"one number of channels, .*'mean': \(0.5,\)"),
    ],
)
def test_normalisations_that_make_no_sense(options: dict[str, object], error: type[Exception], message: str) -> None:
    network = Net().train()
    with pytest.raises(error, match=message):
        Teacher(network, **options)  # type: ignore[arg-type]
    assert network.training  # refused before anything was done to it


def test_an_input_of_other_channels() -> None:
    with pytest.raises(ValueError, match=r"normalisation has 3 channels, but the input is \(2, 1, 8, 8\)"):
        Teacher(Net(channels=1), **IMAGENET, **INCEPTION)(images(channels=1))


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [1, 3])  # the batch norm in eval mode and the dropout not, and the other way round
def test_check_passes_and_changes_nothing(frozen: int) -> None:
    student, teacher = Net().train(), Teacher(Net())
    student[frozen].eval()
    modes = [m.training for m in student.modules()]
    before = state(student)
    teacher.check(student, images())
    assert [m.training for m in student.modules()] == modes
    assert_same_state(student, before)


def test_check_restores_the_student_after_an_error() -> None:
    student = Net().train()
    with pytest.raises(ValueError, match="student has 4 classes and the teacher 100"):
        Teacher(Net(classes=100)).check(student, images())
    with pytest.raises(RuntimeError, match="channels"):
        Teacher(Net()).check(student, images(channels=5))
    assert all(m.training for m in student.modules())


class TwoHeads(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), super().forward(x)


def test_check_names_what_does_not_fit() -> None:
    x = images()
    with pytest.raises(TypeError, match=r"teacher logits must be a tensor \(N, C, ...\) alone, got a tuple of 2"):
        Teacher(TwoHeads()).check(Net(), x)
    with pytest.raises(TypeError, match=r"student logits must be a tensor \(N, C, ...\) alone, got a tuple of 2"):
        Teacher(Net()).check(TwoHeads(), x)
    with pytest.raises(ValueError, match=r"teacher logits must be floating and \(N, C, ...\), got .*\(384,\)"):
        Teacher(nn.Flatten(0)).check(Net(), x)
    with pytest.raises(ValueError, match=r"cannot process the student's input torch.float32 \(2, 3, 8, 8\)"):
        Teacher(Net(channels=1)).check(Net(), x)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 3, 8, 8\)"):
        Teacher(nn.Identity()).check(Net(classes=3), x)
    broken = Net()
    nn.init.constant_(broken[0].weight, math.nan)
    with pytest.raises(ValueError, match="teacher's logits are not finite"):
        Teacher(broken).check(Net(), x)


def test_check_refuses_the_student_as_its_own_teacher() -> None:
    student = Net()
    with pytest.raises(ValueError, match="the teacher is the student itself"):
        Teacher(student).check(student, images())
    for share in (nn.Parameter(student[6].weight.data), student[6].weight):  # the same memory, the same object
        network = Net()
        network[6].weight = share
        with pytest.raises(ValueError, match=r"share the parameter '6.weight'.*copy.deepcopy"):
            Teacher(network).check(student, images())
    Teacher(copy.deepcopy(student)).check(student.requires_grad_(True), images())


def test_only_a_network_can_teach() -> None:
    with pytest.raises(TypeError, match="no Teacher yet, got Teacher"):
        Teacher(Teacher(Net()))
    with pytest.raises(TypeError, match="no Teacher yet, got str"):
        Teacher("resnet18")  # type: ignore[arg-type]
