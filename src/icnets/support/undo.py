"""Undo for in-place surgery: a call that raises leaves what it was given as it was.

with ExitStack() as undo:  # runs its callbacks, the last first, if the block raises
    remember(undo, module)
    operate_on(module)
    undo.pop_all()  # done: nothing is put back
"""

import copy
from contextlib import ExitStack
from itertools import chain

import torch
from torch import nn

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def remember(undo: ExitStack, module: nn.Module) -> None:
    """Notes class, attributes, hooks, parameters, buffers and children of ``module``, but no tensor's values."""
    kind, state = module.__class__, dict(module.__dict__)
    # The tables stay the same objects: handles of hooks refer to them.
    kept = (v for k, v in state.items() if isinstance(v, dict | set) and (k in _TABLES or "_hooks" in k))
    tables = [(table, copy.copy(table)) for table in kept]

    def put_back() -> None:
        module.__class__ = kind
        module.__dict__.clear()
        module.__dict__.update(state)
        for table, content in tables:
            table.clear()
            table.update(content)

    undo.callback(put_back)


def remember_all(undo: ExitStack, model: nn.Module, *, values: bool = False) -> None:
    """Notes every module of ``model`` and, if ``values``, copies of its tensors' values in the CPU's memory."""
    tensors = chain(model.parameters(), model.buffers()) if values else ()
    kept = [(t, t.detach().to("cpu", copy=True)) for t in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value in kept:
            tensor.copy_(value)

    undo.callback(put_back)
    for module in model.modules():
        remember(undo, module)
