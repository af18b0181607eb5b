"""Strategies beyond Lightning's own, under short names for ``--trainer.strategy``."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

__all__ = ["FSDP2Strategy"]


class FSDP2Strategy(ModelParallelStrategy):
    """``fsdp2``: parameters, gradients and optimizer state are spread over all devices (torch's ``fully_shard``).

    Lightning's ``ModelParallelStrategy`` with all devices in its data-parallel dimension, and checkpoints that are one
    file with the whole state, so that any number of devices, and any other strategy, reads them. Runs on CPUs as well.
    """

    strategy_name = "fsdp2"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="fully sharded data parallel, FSDP2", override=True)
