import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from icnets.convert.config import ICConfig
from icnets.data.data_module import ImageData
from icnets.distill.loss import WeakLogitDistillation
from icnets.support.quiet import quiet
from icnets.training.callbacks import History, WeightAverage
from icnets.training.run_checkpoints import (
    STOPPED,
    AtomicCheckpointIO,
    LastCheckpoints,
    Stopped,
    last_checkpoints,
    newest_whole,
    read_checkpoint,
)
from icnets.training.task import ClassificationTask

TINY = {"channels": (4, 8, 8, 8), "stem_width": 4, "drop_rate": 0.2, "drop_path_rate": 0.2}
BATCHES = 8  # in an epoch


class At(Callback):
    """Does something at the end of a batch."""

    def __init__(self, epoch: int, batch: int, action: Callable[[], None]) -> None:
        self.place, self.action = (epoch, batch), action

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.place:
            self.action()


class Died(Exception):
    pass


def die() -> None:
    raise Died


def fit(
    folder: Path,
    *callbacks: Callback,
    resume: Path | None = None,
    workers: int = 0,
    accumulate: int = 1,
    every: int | None = 3,
    lr: float = 0.05,
    average: float | None = 0.9,
    batch_size: int = 20,
    keep: int = 2,
    **trainer_options: Any,
) -> ClassificationTask:
    quiet()
    torch.manual_seed(0)
    teacher = ClassificationTask("resnet10t", 10, 1, model_options=TINY).network
    module = ClassificationTask(
        "resnet10t",
        10,
        1,
        ic=ICConfig(),
        model_options=TINY,
        lr=lr,
        teacher=teacher,
        distillation=WeakLogitDistillation(surpass_patience=2),
    )
    averages = [] if average is None else [WeightAverage(average)]
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, *averages, LastCheckpoints(folder, every_n_steps=every, keep=keep)],
        **trainer_options,
    )
    data = ImageData(train_size=160, image_size=16, batch_size=batch_size, mixup=0.3, workers=workers)
    trainer.fit(module, data, ckpt_path=None if resume is None else str(resume))
    return module


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for (_, x), y in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ClassificationTask:
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (0, 7), (1, 0), (2, 6)])
def test_a_training_that_dies_within_an_epoch_ends_as_if_it_had_not(
    tmp_path: Path, epoch: int, batch: int, whole: ClassificationTask
) -> None:
    with pytest.raises(Died):
        fit(tmp_path / "parts", At(epoch, batch, die))
    start, problems = newest_whole(tmp_path / "parts")
    assert not problems
    done = epoch * BATCHES + batch  # steps of which the checkpoint may be, in epochs of 8 and every 3
    assert (start is None) == (done < 3)
    if start is not None:
        assert 0 <= done - int(start.stem[5:]) < 3
    assert equal(whole, fit(tmp_path / "parts", resume=start))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "accumulate", "average"), [(2, 1, 0.9), (0, 3, 0.9), (0, 1, None)])
def test_resuming_by_workers_and_with_accumulated_gradients(
    tmp_path: Path, workers: int, accumulate: int, average: float | None
) -> None:
    options: dict[str, Any] = {"workers": workers, "accumulate": accumulate, "average": average, "every": 2}
    expected = fit(tmp_path / "whole", **options)
    with pytest.raises(Died):
        fit(tmp_path / "parts", At(1, 6, die), **options)
    start = last_checkpoints(tmp_path / "parts")[0]
    assert equal(expected, fit(tmp_path / "parts", resume=start, **options))


@pytest.mark.parametrize(
    ("batch", "world", "remedy"),
    [(20, 1, None), (10, 2, None), (20, 2, "set data.batch_size to 10, or begin anew"), (40, 3, "others; begin anew")],
)
def test_a_batch_of_another_size_over_all_processes_is_refused(batch: int, world: int, remedy: str | None) -> None:
    place = {"epoch": 1, "batch": 3, "images": 20}
    data = ImageData(train_size=160, image_size=16, batch_size=batch)
    data.trainer = mock.Mock(world_size=world)
    data.trainer.state.fn = "fit"
    if remedy is None:
        data.load_state_dict(place)
        assert data._position() == (1, 3)
        return
    with pytest.raises(ValueError, match=f"20 images a batch over all .* has {batch * world} .*{remedy}"):
        data.load_state_dict(place)
    data.trainer.state.fn = "test"
    data.load_state_dict(place)
    data.trainer.state.fn = "fit"
    data.load_state_dict({"epoch": 1, "batch": 3})  # of an older checkpoint


def test_resuming_with_another_batch_is_refused(tmp_path: Path, whole: ClassificationTask) -> None:
    with pytest.raises(Died):
        fit(tmp_path, At(0, 7, die))
    with pytest.raises(ValueError, match=r"of a training with 20 images a batch .*this one has 16 "):
        fit(tmp_path, resume=last_checkpoints(tmp_path)[0], batch_size=16)


@pytest.mark.parametrize(("epoch", "batch", "step"), [(0, 3, 4), (1, 7, 16)])
def test_sigterm_saves_and_says_so(
    tmp_path: Path, epoch: int, batch: int, step: int, whole: ClassificationTask
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path / "parts", At(epoch, batch, lambda: os.kill(os.getpid(), signal.SIGTERM)), every=None)
    assert stopped.value.code == STOPPED
    start = last_checkpoints(tmp_path / "parts")[0]
    assert stopped.value.checkpoint == start
    assert start.name == f"step-{step:09d}.ckpt"
    assert equal(whole, fit(tmp_path / "parts", resume=start, every=None))
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step-000000001.ckpt.0badcafe.tmp").write_bytes(b"half")
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000021.ckpt", "step-000000024.ckpt"]


def test_a_checkpoint_goes_once_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, seen = AtomicCheckpointIO.save_checkpoint, []

    def saved(self: AtomicCheckpointIO, *arguments: Any, **options: Any) -> None:
        before = last_checkpoints(tmp_path)
        save(self, *arguments, **options)
        for path in last_checkpoints(tmp_path):
            read_checkpoint(path)
        seen.append((before, last_checkpoints(tmp_path)))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", saved)
    fit(tmp_path, keep=1)
    assert len(seen) > 3
    assert [len(before) for before, _ in seen] == [0] + [1] * (len(seen) - 1)
    assert all(after[1:] == before for before, after in seen)
    assert [path.name for path in last_checkpoints(tmp_path)] == ["step-000000024.ckpt"]


def test_what_a_killed_process_left_is_removed_even_if_nothing_is_left_to_train(tmp_path: Path) -> None:
    fit(tmp_path)
    newest = last_checkpoints(tmp_path)[0]
    (tmp_path / "step-000000018.ckpt").write_bytes(newest.read_bytes())
    (tmp_path / ".best.ckpt.0badcafe.tmp").write_bytes(b"half")
    fit(tmp_path, resume=newest)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000021.ckpt", "step-000000024.ckpt"]


@pytest.mark.slow
def test_means_of_an_epoch_are_over_all_of_it(tmp_path: Path) -> None:
    whole, parts = History(), History()
    fit(tmp_path / "whole", whole)
    with pytest.raises(Died):
        fit(tmp_path / "parts", At(1, 6, die), History())
    fit(tmp_path / "parts", parts, resume=last_checkpoints(tmp_path / "parts")[0])
    assert "train/loss" in whole.rows[1]
    assert [{**row, "seconds": 0} for row in parts.rows] == [{**row, "seconds": 0} for row in whole.rows]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 4
    elif how == "zeroed":
        content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    else:
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "zeroed", "empty"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_taken(tmp_path: Path, how: str) -> None:
    for step in (3, 6):
        content = {"state_dict": {"weight": torch.randn(1000)}, "icnets": {}}
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / f"step-{step:09d}.ckpt")
    newest, before = last_checkpoints(tmp_path)
    damage(newest, how)
    with pytest.raises(ValueError, match=rf"{newest.name} is damaged or no checkpoint of icnets fit"):
        read_checkpoint(newest)
    found, problems = newest_whole(tmp_path)
    assert found == before
    assert len(problems) == 1
    with pytest.raises(ValueError, match="is damaged"):
        AtomicCheckpointIO().load_checkpoint(newest)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "icnets": {}}, path)
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.read_bytes() == before


def test_a_loss_that_is_no_number_names_step_images_and_checkpoint(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 2):
                batch[0][3] = float("nan")

    with pytest.raises(FloatingPointError) as caught:
        fit(tmp_path, Poison())
    data = ImageData(train_size=160, image_size=16, batch_size=20, mixup=0.3)
    first = data.names_of_batch(1, 2)[0]
    message = str(caught.value)
    assert message.startswith("the loss is no finite number (nan) at step 10 (epoch 1, batch 2)")
    assert f"its images: {first}, " in message
    assert f"last good checkpoint: {tmp_path / 'step-000000009.ckpt'}" in message
