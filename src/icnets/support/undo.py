"""Undo for in-place surgery: a call that raises leaves what it was given as it was."""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, Self

import torch
from torch import nn

__all__ = ["Undo"]

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Undo:
    """Remembers how to put things back, and does so when its ``with`` block raises.

    Example:
        >>> conv = nn.Conv2d(3, 4, 1)
        >>> with Undo() as undo:
        ...     undo.remember(conv)
        ...     operate_on(conv)
    """

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def remember(self, module: nn.Module) -> None:
        """Notes class, attributes, hooks, parameters, buffers and children of ``module``, but no tensor's values."""
        kind, state = module.__class__, dict(module.__dict__)
        # The tables stay the very objects: handles of hooks refer to them.
        tables = [
            (v, copy.copy(v)) for k, v in state.items() if isinstance(v, dict | set) and (k in _TABLES or "_hooks" in k)
        ]

        def put_back() -> None:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(state)
            for table, content in tables:
                table.clear()
                table.update(content)

        self.steps.append(put_back)

    def remember_all(self, model: nn.Module, *, values: bool = False) -> None:
        """Notes every module of ``model`` and, if ``values``, copies of its tensors' values in the CPU's memory."""
        if values:
            kept = [(t, t.detach().to("cpu", copy=True)) for t in chain(model.parameters(), model.buffers())]

            def put_back() -> None:
                with torch.no_grad():
                    for tensor, value in kept:
                        tensor.copy_(value)

            self.steps.append(put_back)
        for module in model.modules():
            self.remember(module)

    def on_failure(self, step: Callable[[], object]) -> None:
        """Has ``step`` called, before those noted earlier, if the block raises."""
        self.steps.append(step)

    def undo(self) -> None:
        while self.steps:
            self.steps.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self.undo()
