"""A step of training: its time, and the memory it takes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from icnets.evaluation.measure import memory_for_backward

__all__ = ["Memory", "TrainingStep"]


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        saved: what autograd saves for backward, each storage once, without parameters and buffers.
        held: what the allocator has still to give back after a forward pass: ``saved``, the loss, and whatever the
            graph keeps by other ways.
        peak: the most that is alive in a step: parameters, buffers, momenta, the batch, gradients, activations,
            temporaries. Not in it: what oneDNN allocates for itself.
    """

    saved: int
    held: int
    peak: int


class TrainingStep:
    """Forward, cross entropy, backward, SGD with momentum and weight decay; one call is one step.

    Args:
        model: trained in place.
        x: ``(N, C, H, W)``; every step takes this batch, with random labels.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = model.train()
        self.x = x
        with torch.no_grad():
            classes = model(x).shape[1]
        self.labels = torch.randint(classes, (len(x),), generator=torch.Generator().manual_seed(0))
        # Slow enough for the weights to stay what they are.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.labels)

    def memory(self) -> Memory:
        self()  # momenta are there from the first step on
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        lasting = [*self.model.parameters(), *self.model.buffers(), *state, self.x, self.labels]
        resident = sum(t.untyped_storage().nbytes() for t in lasting)
        return Memory(
            saved=memory_for_backward(self.model, self.x),
            held=_allocated(self.loss)[-1],
            peak=resident + max(_allocated(self)),
        )


def _allocated(function: Callable[[], Any]) -> list[int]:
    """Bytes that torch's allocator has handed out since ``function`` began, after each change; its result lives on.

    By the profiler's record of the allocator itself, so temporaries inside operators count, and nothing is sampled.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    del result
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    return list(accumulate(e["args"]["Bytes"] for e in changes))
