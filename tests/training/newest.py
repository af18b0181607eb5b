"""The newest weights of a training, whether or not they are the best."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icnets.training.callbacks import WeightsExport
from icnets.training.run_checkpoints import last_checkpoints


class Newest(WeightsExport):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.best = None
        super().on_train_epoch_end(trainer, pl_module)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Of the network in the last checkpoint in ``folder``."""
    state = torch.load(last_checkpoints(folder)[0], weights_only=True)["state_dict"]
    prefix = "network."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
