"""Checkpoints of a run: written whole or not at all, checked when they are read, and the last few of them kept."""

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from icnets import checkpoint as weights
from icnets.checkpoint.foreign import unpickled
from icnets.checkpoint.image_notes import read_notes
from icnets.support.files import atomic_write, remove_unfinished
from icnets.support.text import first_line, require_at_least

STOPPED = 143  # exit status: 128 + SIGTERM
_ASK_EVERY = 10  # steps on a GPU between two all-reductions, each of which waits for the queue


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file beside its place, flushes it to the disk and renames it; verifies every checksum when reading."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError, and leaves what was at ``path``, if the disk is full or the folder can't be written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            torch.save(checkpoint, unfinished)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises ValueError for a damaged file. Of weights alone (.safetensors), it makes what a test loads."""
        path = Path(path)
        if path.suffix != ".safetensors":
            return read_checkpoint(path)
        _, tensors, strings = weights.read(path)
        notes = {"class_names": read_notes(strings).class_names, "weights_alone": True}
        state = {f"network.{name}": value for name, value in tensors.items()}
        return {"state_dict": state, "icnets": notes, "pytorch-lightning_version": L.__version__}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint of ``icnets fit`` holds, on the CPU; nothing in it is executed.

    Raises:
        ValueError: the file is missing, damaged (by the CRC-32 of each of its parts), or not ours.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; check ckpt_path, and the run's name")
    try:
        content: dict[str, Any] = unpickled(path)
        if missing := {"state_dict", "icnets"} - content.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except Exception as error:
        why = error.__cause__ or error
        what = f"{path} is damaged or no checkpoint of icnets fit ({type(why).__name__}: {first_line(why)})"
        raise ValueError(f"{what}; weights alone are given as model.init_from") from error
    return content


def last_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of the last steps in ``folder``, the newest first."""
    return sorted(folder.glob("step-" + 9 * "[0-9]" + ".ckpt"), reverse=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in ``folder`` that is whole, if any is; and what is wrong with newer ones."""
    problems: list[str] = []
    for path in last_checkpoints(folder):
        try:
            read_checkpoint(path)
            return path, problems
        except ValueError as error:
            problems.append(str(error))
    return None, problems


class LastCheckpoints(Checkpoint):
    """Saves ``step-N.ckpt`` every so many steps, after every epoch, and when the process is told to end (SIGTERM).

    Then it ends training as well, by :class:`Stopped`, on all processes at the same step.

    Args:
        folder: where; made if missing.
        every_n_steps: optimizer steps between two checkpoints within an epoch. None: only at its end.
        keep: so many of the last ones are kept; the others are removed once the next is on the disk.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, keep: int = 1) -> None:
        self.folder, self.every_n_steps, self.keep = folder, every_n_steps, keep
        require_at_least(self, every_n_steps=1, keep=1)
        self.newest: Path | None = None
        self._told_to_stop = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # A killed process may have left files, even after the last step.
            self._tidy()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)  # Lightning restores what there was before it
        if trainer.global_step == 0 and trainer.is_global_zero:
            for path in last_checkpoints(self.folder):  # of a run that is begun anew
                path.unlink(missing_ok=True)

    def _stop(self, number: int, frame: Any) -> None:
        self._told_to_stop = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # The end of the epoch saves after validation, and gradients that are being accumulated can't be saved.
        if batch_idx + 1 >= trainer.num_training_batches or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        stop = self._all_stop(trainer, step)
        if stop or (self.every_n_steps and step % self.every_n_steps == 0):
            self._save(trainer)
        if stop:
            raise Stopped(self.newest)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if self._all_stop(trainer, 0):
            raise Stopped(self.newest)

    def _all_stop(self, trainer: L.Trainer, step: int) -> bool:
        """Whether any rank received SIGTERM, all-reduced; on a GPU, it is asked every few steps only."""
        if trainer.world_size == 1:
            return self._told_to_stop
        if trainer.strategy.root_device.type != "cpu" and step % _ASK_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(self._told_to_stop, all=False)

    def _save(self, trainer: L.Trainer) -> None:
        path = self.folder / f"step-{trainer.global_step:09d}.ckpt"
        trainer.save_checkpoint(path)
        self.newest = path
        if trainer.is_global_zero:
            self._tidy()

    def _tidy(self) -> None:
        for old in last_checkpoints(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)
        remove_unfinished(self.folder)


class Stopped(SystemExit):
    """Training was told to end, and saved where it is; the process ends with status 143, as after any SIGTERM."""

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__(STOPPED)
        self.checkpoint = checkpoint
