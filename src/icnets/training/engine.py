"""How a network runs, not what it computes: recomputed activations, compilation, sharding, mixed precision.

All of it is done in place and leaves parameters, names in state dicts and results as they are. Importing this module
registers the strategy ``fsdp2`` with Lightning.
"""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint


def blocks(network: nn.Module) -> list[nn.Module]:
    """The children of the outermost sequences (nn.Sequential, nn.ModuleList) that have parameters.

    In timm's ResNets these are the residual blocks, in its MobileNets the stages. None of them is part of another.

    Example:
        >>> [type(block).__name__ for block in blocks(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))]
        ['Linear', 'Linear']
    """
    if isinstance(network, nn.Sequential | nn.ModuleList):
        found = [block for block in network.children() if next(block.parameters(), None) is not None]
    else:
        found = [block for child in network.children() for block in blocks(child)]
    return list(dict.fromkeys(found))


def compile_(network: nn.Module) -> None:
    """``torch.compile`` of the forward pass: block by block where the network is sharded, else as a whole."""
    for module in blocks(network) if sharded(network) else [network]:
        module.compile()


class _Recomputed:
    """In front of a module's class: its forward keeps its input alone, and runs again in backward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def recompute_activations_(network: nn.Module) -> None:
    """Activation checkpointing (arXiv 1604.06174): a block's activations are computed anew in backward.

    By timm's ``set_grad_checkpointing`` where the network has it, else for its :func:`blocks`. Gradients stay as they
    are; the running statistics of batch norms see each batch twice, as everywhere with this technique.

    Raises:
        ValueError: the network has neither.
    """
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
        return
    except (AttributeError, AssertionError):  # timm's way to say that a network can't
        found = blocks(network)
    if not found:
        raise ValueError(
            f"activation_checkpointing: {type(network).__name__} has no sequence of blocks to recompute; leave it out"
        )
    for block in found:
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Recomputed, kind), {})


def shard_(network: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: parameters, gradients and optimizer state spread over a one-dimensional ``mesh``, block by block."""
    for module in (*blocks(network), network):
        fully_shard(module, mesh=mesh)


def sharded(network: nn.Module) -> bool:
    """Whether any parameter is spread over several devices."""
    return any(hasattr(p, "full_tensor") for p in network.parameters())


def gathered_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded network, whole and on the CPU of rank 0, empty elsewhere; every rank must call it."""
    state: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


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


def precision_options(precision: Any, accelerator: str, strategy: Any) -> dict[str, Any]:
    """Arguments for Lightning's Trainer in the place of ``precision``.

    Lightning turns 16-mixed on CPUs into bf16-mixed, and takes neither under its strategy for FSDP2, though its own
    plugin does both: autocast, and for float16 torch's gradient scaler (which reduces over shards what it finds).

    Args:
        precision: as for the Trainer.
        accelerator: as for the Trainer.
        strategy: as for the Trainer.

    Returns:
        ``{"plugins": [plugin], "precision": None}`` where that is needed, ``{}`` elsewhere.

    Example:
        >>> precision_options("bf16-mixed", "cpu", "ddp")
        {}
    """
    cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if str(precision) not in ("16", "16-mixed") or not (cpu or strategy == "fsdp2"):
        return {}
    return {"plugins": [MixedPrecision("16-mixed", "cpu" if cpu else "cuda")], "precision": None}
