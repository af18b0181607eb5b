"""Data modules that know where training is: an epoch can be gone on with at any batch, by any number of processes."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import lightning as L
import torch
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from icnets.data.images import ImageFiles, TensorImages, as_is
from icnets.data.order import EpochBatches, EvaluationBatches

__all__ = ["LARGEST_BATCH", "EpochData", "default_batch", "read_again"]

LARGEST_BATCH = 64  # by default
_SMALLEST_BATCH, _STEPS = 8, 20


def default_batch(images: int, batches_per_step: int) -> int:
    """The largest number from 8 to 64 with which ``images`` make 20 steps an epoch; 8, where none does."""
    return min(max(images // (_STEPS * batches_per_step), _SMALLEST_BATCH), LARGEST_BATCH)


class EpochData(L.LightningDataModule):
    """A data module whose place in the training is in its checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self._epochs = count()
        self._resumed: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that come next, and the images of a batch over all processes."""
        if self.trainer is None:
            return {}
        size = self._images_per_batch()
        loop: Any = self.trainer.fit_loop
        started, batch = loop.epoch_progress.current.started, loop.epoch_loop.batch_progress.current.processed
        if batch >= self.trainer.num_training_batches:  # all trained on, whatever of the epoch's end is still at work
            return {"epoch": started, "batch": 0, "images": size}
        return {"epoch": started - 1, "batch": batch, "images": size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Says where the next iteration of the training images begins; ValueError where batches have another size."""
        before, now = state_dict.get("images", 0), self._images_per_batch()
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.trainer is not None and before and now and before != now:
            world = self.trainer.world_size
            size = f"set data.batch_size to {before // world}, or " if before % world == 0 else ""
            raise ValueError(
                f"the checkpoint is of a training with {before} images a batch over all processes, and this one has "
                f"{now} ({world} process{'es' * (world > 1)}): its steps and its schedule would be others; {size}begin "
                "anew from its weights (model.init_from)"
            )
        if state_dict:
            self._resumed = (int(state_dict["epoch"]), int(state_dict["batch"]))

    def _images_per_batch(self) -> int:
        """Over all processes; 0 where it isn't known."""
        return 0 if self.trainer is None else int(getattr(self, "batch_size", 0)) * self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """Epoch and first batch of an iteration that begins; without a trainer, iterations count as epochs."""
        if self._resumed is not None:
            position, self._resumed = self._resumed, None
            return position
        return (next(self._epochs), 0) if self.trainer is None else (int(self.trainer.current_epoch), 0)

    @property
    def batches_per_step(self) -> int:
        """Batches of an optimizer step: processes x accumulated."""
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return _process()[1] * accumulated

    def training_batch(self, epoch: int, number: int) -> Any:
        """What this process trains on in a batch, read (again) beside the training, whose course stays as it is."""
        loader: Any = self.train_dataloader()
        return loader.dataset.__getitems__(loader.batch_sampler.batch(epoch, number))

    def epoch_batches(
        self,
        images: ImageFiles | TensorImages,
        batch_size: int,
        seed: int,
        *,
        repeats: int = 1,
        groups: Sequence[tuple[int, int]] = (),
        window: int = 0,
    ) -> EpochBatches:
        """The batches of this process in training; fewer images in each where there are so few.

        Raises:
            ValueError: there are fewer images than processes.
        """
        rank, world = _process()
        size = min(batch_size, len(images) // world)
        if images.mix is not None:
            size -= size % 2
        if size == 0:
            raise ValueError(f"{len(images)} training images are too few for {world} processes")
        return EpochBatches(
            len(images),
            size,
            seed,
            self._position,
            rank=rank,
            world=world,
            repeats=repeats,
            groups=groups,
            window=window,
        )

    def evaluation_batches(self, images: ImageFiles | TensorImages, batch_size: int) -> EvaluationBatches:
        """The batches of this process in an evaluation."""
        rank, world = _process()
        return EvaluationBatches(len(images), min(batch_size, len(images)), rank=rank, world=world)

    def loader(
        self, images: ImageFiles | TensorImages, batches: Sampler[Any] | int, *, workers: int = 0, prefetch: int = 2
    ) -> DataLoader[Any]:
        """Reads ``batches`` of ``images``, or all of them so many at a time, in ``workers`` processes."""
        order: dict[str, Any] = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
        return DataLoader(
            images,
            **order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            collate_fn=as_is,
        )


def read_again(trainer: Any, epoch: int, number: int) -> Any:
    """A batch of the trainer's :class:`EpochData`, as training gets it: of the trainer's precision, on its device."""
    batch = trainer.precision_plugin.convert_input(trainer.datamodule.training_batch(epoch, number))
    return trainer.strategy.batch_to_device(batch)


def _process() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
