"""A training on a folder, in however many processes torchrun starts; prints losses and what was read.

Arguments: the data's root, and the images of a global batch.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from icnets.convert.config import ICConfig
from icnets.data.data_module import ImageData
from icnets.data.images import ImageFiles
from icnets.support.quiet import quiet
from icnets.training.task import ClassificationTask

EPOCHS = 2


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes; torch's own refuses CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = all_reduce(x.sum((0, 2, 3))) / count
        variance = all_reduce((x - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


def synced(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            other = SyncedBatchNorm(child.num_features)
            other.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(other, getattr(child, "act", nn.Identity())))
        else:
            synced(child)


class Record(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].detach().clone()
        if distributed.is_initialized():
            distributed.all_reduce(loss)
            loss /= distributed.get_world_size()
        self.losses.append(float(loss))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validation += [float(trainer.callback_metrics[f"val/{name}"]) for name in ("loss", "top1")]


def main(root: str, batch: int, world: int) -> None:
    quiet()
    read: list[tuple[int, str]] = []
    original = ImageFiles.batch

    def batch_of(self: ImageFiles, keys: list[tuple[int, int, int]]) -> Any:
        if self.training:
            read.extend((epoch, self.name(index)) for epoch, index, _ in keys)
        return original(self, keys)

    ImageFiles.batch = batch_of  # type: ignore[method-assign]
    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16), "stem_width": 8}
    module = ClassificationTask("resnet10t", 4, ic=ICConfig(), model_options=options, lr=0.05)
    synced(module.network)
    record = Record()
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, deterministic="warn", precision="64-true", callbacks=[record],
    )  # fmt: skip
    data = ImageData(Path(root), image_size=32, batch_size=batch // world)
    trainer.fit(module, data)
    result = {"rank": trainer.global_rank, "losses": record.losses, "validation": record.validation, "read": read}
    Path(root, f"result-{world}-{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
