"""How a network runs, not what it computes: memory format, recomputed activations, compilation, sharding.

All of it is done in place and leaves parameters, names in state dicts and results as they are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks", "compile_", "gathered_state", "recompute_activations_", "shard_", "sharded"]


def blocks(network: nn.Module) -> list[nn.Module]:
    """The children of the outermost sequences (nn.Sequential, nn.ModuleList) that have parameters.

    In timm's ResNets these are the residual blocks, in its MobileNets the stages. None of them is part of another.
    """
    found: list[nn.Module] = []
    for child in network.children() if not _is_sequence(network) else [network]:
        if _is_sequence(child):
            found += [block for block in child.children() if next(block.parameters(), None) is not None]
        else:
            found += blocks(child)
    return list(dict.fromkeys(found))


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


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
        pass
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
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def sharded(network: nn.Module) -> bool:
    """Whether any parameter is spread over several devices."""
    return any(hasattr(p, "full_tensor") for p in network.parameters())


def gathered_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded network, whole and on the CPU; every rank must call this."""
    return dict(_gathered(network.state_dict()))


def _gathered(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        yield name, (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()
