"""Runs under DDP, one for each precision, interrupted and resumed, for ``torchrun``; see test_engines.

Prints a line of JSON for each: the losses of all steps without an interruption, and of those after it.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from icnets import ICConfig, create_model
from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.training.task import ClassificationTask
from training.newest import Newest

TINY: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}
EPOCHS = 4  # of 5 steps on each of 2 devices


class _Losses(Callback):
    """The loss of every step; ends the training after so many epochs."""

    def __init__(self, stop: int) -> None:
        self.values: list[float] = []
        self.stop = stop

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.stop


def fit(precision: str, folder: Path, *, stop: int = EPOCHS, resume: bool = False) -> list[float]:
    torch.manual_seed(5)
    teacher = create_model("resnet10t", ic=None, num_classes=10, in_chans=1, **TINY)
    options: dict[str, Any] = {"teacher": teacher, "lr": 0.02}
    module = ClassificationTask("resnet10t", 10, 1, ic=ICConfig(), model_options=TINY, **options)
    losses = _Losses(stop)
    saver = ModelCheckpoint(dirpath=folder, save_last=True, save_top_k=0, enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=2, strategy="ddp", logger=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, deterministic="warn",
        callbacks=[losses, Newest(folder), saver], precision=precision,
    )  # fmt: skip
    # Not of 16 pixels: of one pixel's 3x3 with a stride oneDNN leaves gradients uninitialised in bfloat16.
    data = ImageData(train_size=160, image_size=32, batch_size=16)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None, weights_only=True)
    for value in module.network.buffers():  # of batch norms: one network on all devices
        first = value.clone()
        torch.distributed.broadcast(first, 0)
        assert torch.equal(first, value)
    return losses.values


def main(precisions: list[str], folder: Path) -> None:
    quiet()
    warnings.filterwarnings("ignore", message=".*is_last_batch|.*sync_dist|.*`use_distributed_sampler")
    for precision in precisions:
        whole = fit(precision, folder / f"{precision}-whole")
        fit(precision, folder / f"{precision}-parts", stop=EPOCHS // 2)
        rest = fit(precision, folder / f"{precision}-parts", resume=True)
        if torch.distributed.get_rank() == 0:
            found = {"whole": whole, "rest": rest, "precision": precision}
            print("RESULT " + json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]))
