"""Hooks and modes of modules, for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["modes_kept", "removed_after"]


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks of ``handles`` when the block ends, however it ends; those of a generator are made in here."""
    made: list[RemovableHandle] = []
    try:
        made.extend(handles)
        yield
    finally:
        for handle in made:
            handle.remove()


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Each module of ``network`` is in train or eval mode afterwards as it was before, however the block ends."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
