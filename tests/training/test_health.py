"""What is looked at before the first step: a teacher that knows nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icnets.distill.loss import Teacher
from icnets.training.health import require_better_than_guessing
from training.test_task import digits, fit, task, tiny


class _Knows(nn.Module):
    """Right on a share of the images, whose first pixels are their classes."""

    def __init__(self, share: float, classes: int) -> None:
        super().__init__()
        self.share, self.classes = share, classes

    def forward(self, x: Tensor) -> Tensor:
        labels = x[:, 0, 0, 0].long()
        right = torch.arange(len(x)) < self.share * len(x)
        return nn.functional.one_hot(torch.where(right, labels, (labels + 1) % self.classes), self.classes).float()


def batches(images: int, classes: int, size: int = 50, *, soft: bool = False) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(images) % classes
    x = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    target = 0.6 * nn.functional.one_hot(labels, classes) + 0.4 / classes if soft else labels
    return list(zip(x.split(size), target.split(size), strict=True))


@pytest.mark.parametrize(
    ("share", "classes", "images", "refused"),
    [
        (0.25, 4, 400, True),
        (0.3, 4, 400, True),
        (0.5, 4, 400, False),
        (0.0, 4, 400, True),
        (0.5, 2, 400, True),
        (0.7, 2, 400, False),
        (0.0, 1000, 400, True),
        (0.04, 1000, 400, False),  # weak, but fourty times as good as guessing
        (0.25, 4, 80, False),  # too few to say
        (0.25, 4, 120, True),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
def test_a_teacher_no_better_than_guessing(share: float, classes: int, images: int, refused: bool, soft: bool) -> None:
    teacher, given = Teacher(_Knows(share, classes)), batches(images, classes, soft=soft)
    if not refused:
        require_better_than_guessing(teacher, given, lambda t: t)
        return
    with pytest.raises(ValueError, match=r"the teacher is right on \d+ of \d+ .*guessing among \d+ classes on"):
        require_better_than_guessing(teacher, given, lambda t: t)


def test_no_more_is_read_than_says_something_and_processes_add_up() -> None:
    read: list[int] = []

    def reading() -> Any:
        for x, target in batches(1000, 4):
            read.append(len(x))
            yield x, target

    require_better_than_guessing(Teacher(_Knows(0.9, 4)), reading(), lambda t: 2 * t)
    assert read == [50, 50]
    with pytest.raises(ValueError, match=r"right on 48 of 200 training images \(24\.0%\), and .* 4 classes on 25\.0%"):
        require_better_than_guessing(Teacher(_Knows(0.23, 4)), batches(1000, 4), lambda t: t)


@pytest.mark.parametrize("kind", ["random", "one class", "batch norm of other weights"])
def test_it_is_an_error_before_the_first_step(kind: str) -> None:
    teacher = tiny()
    if kind == "one class":
        nn.init.zeros_(teacher.get_submodule("fc").weight)
    if kind == "batch norm of other weights":
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=30)  # type: ignore[union-attr]
    module = task(teacher=teacher)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"of 200 training images \(.*%\), and guessing among 10 classes on 10\.0%"):
        fit(module, digits(train_size=300))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    fit(task(teacher=teacher, check_teacher=False), digits(train_size=300), max_steps=1)
