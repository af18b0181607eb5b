"""Hooks of modules, for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle

__all__ = ["removed_after"]


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks of ``handles`` when the block ends, however it ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
