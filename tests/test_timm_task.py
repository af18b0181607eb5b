"""The task in timm's training loop: progress, checkpoints, averaged weights, compilation."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from icnets.distill.loss import DistillationSchedule, Teacher, WeakLogitDistillation

timm = pytest.importorskip("timm")

from timm.data.mixup import mixup_target  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.task import resume_task_checkpoint  # noqa: E402
from timm.utils import CheckpointSaver  # noqa: E402

from examples.timm_task import WeakLogitDistillationTask  # noqa: E402

LINEAR = DistillationSchedule("linear", weight=1.0)


def net(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)
    )


def task_of(total_steps: int | None = 4, **options: object) -> WeakLogitDistillationTask:
    loss = WeakLogitDistillation(schedule=LINEAR, **options)  # type: ignore[arg-type]
    return WeakLogitDistillationTask(net(), net(), loss, total_steps=total_steps)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 3, 8, 8), torch.tensor([0, 3, 1])


def test_one_step_trains_the_student_with_the_loss() -> None:
    task = task_of()
    x, target = batch()
    teacher = {k: v.clone() for k, v in task.teacher.model.state_dict().items()}
    result = task.train()(x, target)
    expected = task.distillation(result["output"], task.teacher(x), target, 0.0)
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["loss"], result["task_loss"] + result["kd_weight"] * result["kd_loss"])
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    before = task.trainable_module[0].weight.clone()
    result["loss"].backward()
    optimizer.step()
    assert not torch.equal(task.trainable_module[0].weight, before)
    assert all(torch.equal(v, teacher[k]) for k, v in task.teacher.model.state_dict().items())


def test_counted_progress_follows_the_schedule_and_stays_at_the_end() -> None:
    task = task_of(total_steps=4).train()
    weights = [task(*batch())["kd_weight"].item() for _ in range(6)]
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_validation_is_no_progress() -> None:
    task = task_of(total_steps=4)
    task.eval()
    task(*batch())
    task.train()
    with torch.no_grad():
        task(*batch())
    assert task.progress == 0.0


def test_the_teacher_rests_when_it_has_no_weight() -> None:
    task = task_of(total_steps=None, surpass_patience=1)
    calls: list[int] = []
    task.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    task.set_progress(0.5)
    task(*batch())
    assert len(calls) == 1
    task.set_progress(1.0)
    task(*batch())
    task.set_progress(0.0)
    task.distillation.observe(0.9, 0.8)
    task(*batch())
    assert len(calls) == 1


def test_progress_by_hand() -> None:
    task = task_of(total_steps=None)
    with pytest.raises(RuntimeError, match=r"'linear' needs the progress.*total_steps=.*set_progress"):
        task(*batch())
    task.set_progress(0.25)
    assert task(*batch())["kd_weight"].item() == 0.75
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        task.set_progress(1.5)
    counted = task_of(total_steps=10)
    counted.set_progress(0.5)
    counted(*batch())
    assert counted.progress == 0.6


def test_schedules_that_need_no_progress() -> None:
    constant = WeakLogitDistillation(schedule=DistillationSchedule("constant", weight=1.0))
    assert WeakLogitDistillationTask(net(), net(), constant)(*batch())["kd_weight"].item() == 1.0
    baseline = WeakLogitDistillationTask(net(), None)
    x, target = batch()
    result = baseline(x, target)
    torch.testing.assert_close(result["loss"], nn.functional.cross_entropy(result["output"], target))
    baseline.check(x)


def test_a_checkpoint_of_timms_saver_resumes(tmp_path: Path) -> None:
    task = task_of(surpass_patience=2).train()
    task.setup_ema(decay=0.5)
    task(*batch())
    task.update_ema()
    task.distillation.observe(0.9, 0.8)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    saver = CheckpointSaver(task.trainable_module, optimizer, task=task, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert set(saved["state_dict"]) == set(task.trainable_module.state_dict())
    assert "task_state_ema" not in saved

    resumed = task_of(surpass_patience=2)
    teacher = copy.deepcopy(resumed.teacher.model.state_dict())
    resume_task_checkpoint(resumed, str(tmp_path / "last.pth.tar"), log_info=False)
    assert resumed.progress == task.progress == 0.25
    assert resumed.distillation.observe(0.9, 0.8)
    for key, value in resumed.trainable_module.state_dict().items():
        assert torch.equal(value, task.trainable_module.state_dict()[key])
    assert all(torch.equal(v, teacher[k]) for k, v in resumed.teacher.model.state_dict().items())


def test_a_plain_checkpoint_says_that_the_progress_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of()
    with caplog.at_level(logging.WARNING):
        task.load_checkpoint_state(net().state_dict())
    assert "set_progress() to resume" in caplog.text
    with pytest.raises(RuntimeError, match="task state lacks distillation, progress, step"):
        task.load_task_state({"projection": {}})


def test_no_state_dict_holds_the_teacher() -> None:
    task = task_of()
    assert not [key for key in task.state_dict() if "teacher" in key]
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable_module.parameters()}
    task.load_state_dict(task.state_dict())
    task.double()
    assert task(batch()[0].double(), batch()[1])["loss"].dtype == torch.float64


def test_compiled_and_averaged() -> None:
    task = task_of().train()
    x, target = batch()
    expected = copy.deepcopy(task)(x, target)["loss"]
    assert task.compile(backend="eager") is task.get_eval_model()
    torch.testing.assert_close(task(x, target)["loss"], expected)
    assert set(task.get_checkpoint_state()["state_dict"]) == set(net().state_dict())


def test_distributed_wraps_the_student_only(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        task = task_of().train()
        assert task.prepare_distributed() is task
        with task.no_sync():
            task(*batch())["loss"].backward()
        assert isinstance(task.trainable_module, nn.parallel.DistributedDataParallel)
        assert isinstance(task.teacher.model, nn.Sequential)
        assert set(task.get_checkpoint_state()["state_dict"]) == set(net().state_dict())
    finally:
        torch.distributed.destroy_process_group()


def test_a_timm_teacher_gets_its_own_normalisation_and_soft_targets_work() -> None:
    student, teacher = (timm.create_model("resnet10t", num_classes=4) for _ in range(2))
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    task = WeakLogitDistillationTask(student, teacher, WeakLogitDistillation(schedule=LINEAR), total_steps=2)
    raw = torch.rand(2, 3, 32, 32)
    cfg = student.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    task.check((raw - mean) / std)
    torch.testing.assert_close(task.teacher((raw - mean) / std), teacher((raw - 0.5) / 0.5), rtol=1e-4, atol=1e-5)
    soft = mixup_target(torch.tensor([0, 3]), 4, lam=0.3, smoothing=0.1)
    assert task.train()((raw - mean) / std, soft)["loss"].isfinite()


def test_refusals_come_before_training_and_leave_the_student_trainable() -> None:
    student = timm.create_model("resnet10t", num_classes=10)
    with pytest.raises(ValueError, match="student has 10 classes and the teacher 100"):
        WeakLogitDistillationTask(student, timm.create_model("resnet10t", num_classes=100))
    with pytest.raises(ValueError, match="the teacher is the student itself"):
        WeakLogitDistillationTask(student, student)
    shared = net()
    shared[0].weight = (other := net())[0].weight
    with pytest.raises(ValueError, match=r"share the parameter '0\.weight'"):
        WeakLogitDistillationTask(other, shared)
    assert all(p.requires_grad for m in (student, other) for p in m.parameters())
    part = Teacher(timm.create_model("resnet10t", num_classes=100), classes=range(40, 50))
    assert WeakLogitDistillationTask(student, part, total_steps=1).teacher is part
    with pytest.raises(ValueError, match="student has 4 classes and the teacher 7"):
        WeakLogitDistillationTask(net(), Teacher(net(7)), total_steps=1).check(batch()[0])
    with pytest.raises(ValueError, match="total_steps must be an int >= 1 or None, got 0"):
        task_of(total_steps=0)
    with pytest.raises(TypeError, match=r"total_steps must be an int >= 1 or None, got 2\.5"):
        task_of(total_steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="distillation must be a WeakLogitDistillation, got CrossEntropyLoss"):
        WeakLogitDistillationTask(net(), None, nn.CrossEntropyLoss())  # type: ignore[arg-type]
