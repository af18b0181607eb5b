"""Callbacks of ``icnets fit``: its configuration on disk, and what it says of itself and of unreadable images."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from icnets.support.files import atomic_write
from icnets.unit.layers import IC_LAYERS


class SavedConfiguration(Callback):
    """Writes config.yaml into the run's folder, with what was chosen by default, and without a checkpoint to resume.

    It waits until a checkpoint is loaded: options that a checkpoint refuses would spoil the configuration that its
    run goes on with.
    """

    def __init__(self, parser: Any, config: Any, folder: Path) -> None:
        self.parser, self.config, self.folder = parser, config, folder

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        config, data = self.config.clone(), trainer.datamodule
        config.ckpt_path = None
        config.data.batch_size, config.data.eval_batch_size = data.batch_size, data.eval_batch_size
        config.model.lr, config.trainer.gradient_clip_val = pl_module.optimization.lr, pl_module.gradient_clip_val
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "config.yaml") as temporary:  # a process that is started again may read it
            self.parser.save(config, temporary, skip_none=False, overwrite=True, multifile=False)


class Announcement(Callback):
    """Says what is trained on what, once all is built and the first step is near."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        network = pl_module.network
        units = sum(isinstance(m, IC_LAYERS) for m in network.modules())
        kind = f"{type(network).__name__} with {units} IC units" if units else f"basic {type(network).__name__}"
        sizes = ", ".join(f"{trainer.datamodule.size(split):,} {split}" for split in ("train", "val", "test"))
        count = sum(p.numel() for p in network.parameters())
        lr = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        step = f"{pl_module.global_batch} images a step, {steps:,} steps an epoch, lr {lr:.4g}"
        if pl_module.fine_tunes:
            step += f" (fine-tuning: a tenth of the usual, gradients clipped to {pl_module.gradient_clip_val:g})"
        require_one_step(trainer)
        if trainer.is_global_zero:
            print(f"{kind}, {count:,} parameters; images: {sizes}; {step}", flush=True)


class UnreadableImages(Callback):
    """After every epoch, says which images could not be read so far, in ``file`` and in a line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        names = trainer.datamodule.unreadable()
        if len(names) > self.known and trainer.is_global_zero:
            with atomic_write(self.file) as unfinished:
                unfinished.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            print(f"{len(names)} images can't be read and were skipped so far: {self.file}", flush=True)
        self.known = len(names)


def require_one_step(trainer: Any) -> None:
    """Raises ValueError where hosts would go on at different steps, having found different checkpoints."""
    step = trainer.strategy.broadcast(trainer.global_step)
    if step != trainer.global_step:
        raise ValueError(
            f"process {trainer.global_rank} would go on at step {trainer.global_step} and process 0 at step {step}; "
            "give --runs a folder that all hosts share"
        )
