"""Data modules that know where training is: an epoch can be resumed at any batch, by any number of processes."""

from itertools import count
from typing import Any

import lightning as L
import torch
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from icnets.data.images import Images, as_is
from icnets.data.order import EpochBatches, EvaluationBatches

LARGEST_BATCH = 64  # by default
_SMALLEST_BATCH, _STEPS = 8, 20


def default_batch(images: int, batches_per_step: int) -> int:
    """Return the largest number from 8 to 64 with which ``images`` make 20 steps an epoch; 8, where none does."""
    return min(max(images // (_STEPS * batches_per_step), _SMALLEST_BATCH), LARGEST_BATCH)


class EpochData(L.LightningDataModule):
    """A data module whose place in the training is in its checkpoints.

    ``setup`` of a subclass fills ``_splits`` ("train", "val", "test") and ``_names``, those of the classes.
    """

    seed: int
    eval_batch_size: int
    _batch_size: int | None = None
    workers = 0
    repeats = 1

    def __init__(self) -> None:
        super().__init__()
        self._splits: dict[str, Images] = {}
        self._names: list[str] = []
        self._epochs = count()
        self._resumed: tuple[int, int] | None = None

    @property
    def batch_size(self) -> int:
        """Images per step of one process; where the option is None, chosen by the number of training images."""
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return self._batch_size or default_batch(self.size("train"), processes()[1] * accumulated)

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._batch_size = size

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their order is that of the network's outputs."""
        self.setup("")
        return self._names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def size(self, split: str) -> int:
        """Return the number of images in "train", "val" or "test"."""
        self.setup("")
        return len(self._splits[split])

    def names(self, split: str) -> list[str]:
        """Name the images of "train", "val" or "test" in their order: by path, or by number where they have none."""
        return [self._splits[split].name(index) for index in range(self.size(split))]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and batch that come next, and the images of a batch over all processes."""
        if self.trainer is None:
            return {}
        size = self._images_per_batch()
        loop: Any = self.trainer.fit_loop
        started, batch = loop.epoch_progress.current.started, loop.epoch_loop.batch_progress.current.processed
        if batch >= self.trainer.num_training_batches:  # all trained on, whatever of the epoch's end is still at work
            return {"epoch": started, "batch": 0, "images": size}
        return {"epoch": started - 1, "batch": batch, "images": size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take from a checkpoint where the next iteration of the training images begins.

        Raises:
            ValueError: the checkpoint's batches have another size.
        """
        before, now = state_dict.get("images", 0), self._images_per_batch()
        fitting = self.trainer if self.trainer is not None and self.trainer.state.fn == "fit" else None
        if fitting is not None and before and now and before != now:
            world = fitting.world_size
            size = f"set data.batch_size to {before // world}, or " if before % world == 0 else ""
            what = f"the checkpoint is of a training with {before} images a batch over all processes"
            here = f"this one has {now} ({world} process{'es' * (world > 1)})"
            remedy = f"{size}begin anew from its weights (model.init_from)"
            raise ValueError(f"{what}, and {here}: its steps and its schedule would be others; {remedy}")
        if state_dict:
            self._resumed = (int(state_dict["epoch"]), int(state_dict["batch"]))

    def _images_per_batch(self) -> int:
        """Over all processes; 0 where it isn't known."""
        return 0 if self.trainer is None else self.batch_size * self.trainer.world_size

    def _position(self) -> tuple[int, int]:
        """Epoch and first batch of an iteration that begins; without a trainer, iterations count as epochs."""
        if self._resumed is not None:
            position, self._resumed = self._resumed, None
            return position
        return (next(self._epochs), 0) if self.trainer is None else (int(self.trainer.current_epoch), 0)

    def train_batches(self) -> EpochBatches:
        """Make the batches of this process in training, with fewer images in each where there are so few.

        Raises:
            ValueError: there are fewer images than processes.
        """
        self.setup("")
        images, (rank, world) = self._splits["train"], processes()
        size = min(self.batch_size, len(images) // world)
        if images.mix is not None:
            size -= size % 2
        if size == 0:
            raise ValueError(f"{len(images)} training images are too few for {world} processes")
        return EpochBatches(len(images), size, self.seed, self._position, rank=rank, world=world, repeats=self.repeats)

    def training_batch(self, epoch: int, number: int) -> Any:
        """Read (again) what this process trains on in a batch; the course of the training stays as it is."""
        return self._splits["train"].__getitems__(self.train_batches().batch(epoch, number))

    def train_dataloader(self) -> DataLoader[Any]:
        """Give its batches: x (N, C, ...) float32; target (N,) int64, or (N, classes) float32 where mixed."""
        return self._loader("train", self.train_batches())

    def val_dataloader(self) -> DataLoader[Any]:
        """Give batches (x, target), not augmented, in a fixed order; target -1 for what evaluation leaves out.

        That is what can't be read and, with several processes, what evens out their batches.
        """
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Like ``val_dataloader``, of the test images."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        images, (rank, world) = self.size(split), processes()
        return self._loader(split, EvaluationBatches(images, min(self.eval_batch_size, images), rank=rank, world=world))

    def _loader(self, split: str, batches: Sampler[Any]) -> DataLoader[Any]:
        options: dict[str, Any] = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        options |= {"pin_memory": torch.cuda.is_available(), "collate_fn": as_is}
        return DataLoader(self._splits[split], batch_sampler=batches, **options)


def read_again(trainer: Any, epoch: int, number: int) -> Any:
    """Read a batch of the trainer's :class:`EpochData` as training gets it: in its precision, on its device."""
    batch = trainer.precision_plugin.convert_input(trainer.datamodule.training_batch(epoch, number))
    return trainer.strategy.batch_to_device(batch)


def processes() -> tuple[int, int]:
    """Return the rank of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
