"""Running statistics of batch norms that belong to the weights, also where an epoch has few steps.

A running average with momentum 0.1 takes tens of steps to follow the weights. An epoch of three steps ends with
statistics of weights that are long gone: the network is right in train mode and guesses in eval mode. There, they are
taken anew after the epoch's last step, from its last batches, as ``torch.optim.swa_utils.update_bn`` does.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from icnets.data.epochs import read_again
from icnets.support.hooks import modes_kept
from icnets.training.callbacks import WeightAverage, validates_within_fit

_IMAGES = 512  # of one process, from which statistics are taken
_PATIENCE = 10.0  # an average with momentum m follows after so many times 1/m steps


def lagging(network: nn.Module, steps: float) -> list[str]:
    """Names of the norms in train mode whose running averages can't follow the weights in ``steps`` forward passes.

    Those without statistics, and frozen ones (eval mode, momentum 0), are left out. Without a momentum, a norm averages
    over the whole training, and never follows.
    """
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None
        if module.momentum is None or 0 < module.momentum * steps < _PATIENCE
    ]


@torch.no_grad()
def take_anew(
    network: nn.Module, names: Sequence[str], batches: Iterable[Tensor], reduce: Callable[[Tensor], Tensor]
) -> None:
    """The running statistics of the norms ``names`` become the mean of those of the batches; nothing else changes.

    All other modules are in eval mode meanwhile: nothing is drawn at random, and the statistics are those of what the
    network computes in eval mode.

    Args:
        network: in place.
        names: see :func:`lagging`.
        batches: images (N, C, H, W), at least one batch.
        reduce: the mean of a tensor over all processes.
    """
    norms: list[Any] = [network.get_submodule(name) for name in names]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    with modes_kept(network), torch.compiler.set_stance("force_eager"):  # few batches: no reason to compile
        network.eval()
        for norm in norms:
            norm.train().reset_running_stats()
        try:
            for number, x in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / number
                network(x)
        finally:
            for norm, (norm.momentum, tracked) in zip(norms, kept, strict=True):
                norm.num_batches_tracked.copy_(tracked)
    for norm in norms:
        for statistics in (norm.running_mean, norm.running_var):
            statistics.copy_(reduce(statistics))


class FreshStatistics(Callback):
    """Takes statistics anew before they are used: after the last step of an epoch, and before a validation within it.

    Only where :func:`lagging` says so; otherwise it costs nothing. With a :class:`WeightAverage`, the average's are.
    """

    def __init__(self) -> None:
        self._names: list[str] | None = None  # of the norms, in this epoch
        self._last: deque[Tensor] = deque()  # batches

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._names is None:
            self._names = lagging(pl_module.network, trainer.num_training_batches)
            self._last = deque(maxlen=-(-_IMAGES // len(batch[0])))
        if self._names:
            self._last.append(batch[0])
        if batch_idx + 1 >= trainer.num_training_batches or trainer.global_step == trainer.max_steps:
            averages = [c.average for c in trainer.callbacks if isinstance(c, WeightAverage)]
            self._refresh(trainer, pl_module, averages[0] if averages else pl_module.network)
            self._names = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validates_within_fit(trainer):  # at the end of an epoch, it is done already
            self._refresh(trainer, pl_module, pl_module.network)

    def _refresh(self, trainer: Any, pl_module: Any, network: Any) -> None:
        if not self._names:
            return
        # Those that a training which was resumed within the epoch didn't see are read again.
        done = trainer.fit_loop.epoch_loop.batch_idx + 1
        wanted = min(done, self._last.maxlen or 0)
        while len(self._last) < wanted and hasattr(getattr(trainer, "datamodule", None), "training_batch"):
            self._last.appendleft(read_again(trainer, trainer.current_epoch, done - len(self._last) - 1)[0])
        with trainer.precision_plugin.train_step_context():
            batches = (pl_module.images(x) for x in self._last)
            take_anew(network, self._names, batches, lambda t: trainer.strategy.reduce(t, reduce_op="mean"))
