"""A step of training: its time, and the memory it takes."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from icnets.profile.measure import memory_for_backward

__all__ = ["Memory", "TrainingStep"]

_FORWARD = "forward pass"


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
        model: a classifier of timm, trained in place.
        x: ``(N, C, H, W)``; every step takes this batch, with random labels. The network takes its memory format.
        dtype: of the forward pass, by autocast.
    """

    def __init__(self, model: Any, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.model: nn.Module = model.train()
        self.x, self.dtype = x, dtype
        if not x.is_contiguous():
            model.to(memory_format=torch.channels_last)
        self.labels = torch.randint(model.num_classes, (len(x),), generator=torch.Generator().manual_seed(0))
        # Slow enough for the weights to stay what they are.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not torch.float32):
            outputs = self.model(self.x)
        return F.cross_entropy(outputs.float(), self.labels)

    def memory(self) -> Memory:
        if not self.optimizer.state:
            self()  # makes the momenta
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        lasting = [*self.model.parameters(), *self.model.buffers(), *state, self.x, self.labels]
        resident = sum(t.untyped_storage().nbytes() for t in lasting)
        after_forward, peak = self._allocated()
        return Memory(memory_for_backward(self.model, self.x), after_forward, resident + peak)

    def _allocated(self) -> tuple[int, int]:
        """Bytes that torch's allocator has handed out since the step began: after its forward pass, and at most.

        By the profiler's record of the allocator itself, so temporaries inside operators count; nothing is sampled.
        """
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says when it starts and stops
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            with record_function(_FORWARD):
                loss = self.loss()
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            recorded.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        forward = next(e["ts"] + e["dur"] for e in events if e.get("name") == _FORWARD and "dur" in e)
        changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
        alive = list(accumulate(e["args"]["Bytes"] for e in changes))
        return alive[sum(e["ts"] <= forward for e in changes) - 1], max(alive)
