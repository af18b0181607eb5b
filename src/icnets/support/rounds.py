"""Timing on a machine that does other things as well: interleaved rounds, and ratios within each round."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of one round's time over another's, round by round."""

    median: float
    low: float
    high: float


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Of ``times[i] / reference[i]``, where entry i of both was measured in round i.

    Raises ValueError for different lengths, or none.
    """
    ratios = [own / other for own, other in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(2 * ratios if len(ratios) == 1 else ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def interleaved(
    steps: Mapping[str, Callable[[], Any]], rounds: int, min_seconds: float = 0.25, device: torch.device = _CPU
) -> dict[str, list[float]]:
    """Seconds that each step takes, in each of ``rounds``.

    In every round every step runs once, in random order, so that whatever else the machine does meets them all. A step
    shorter than ``min_seconds`` is called as often as fills them, after one call that isn't timed, which brings its
    weights back into the caches and lets the threads of the step before it come to rest. ``device`` is where the steps
    compute: a GPU's queue is waited for.
    """
    order, shuffle = list(steps), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in steps}
    calls = {name: _calls(step, min_seconds, device) for name, step in steps.items()}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # Python's garbage collector would stop some steps, and not others
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                if calls[name] > 1:
                    steps[name]()
                times[name].append(_timed(steps[name], calls[name], device))
    finally:
        if enabled:
            gc.enable()
    return times


def _calls(step: Callable[[], Any], min_seconds: float, device: torch.device) -> int:
    step()  # compiles, allocates, tunes
    return max(1, math.ceil(min_seconds / max(_timed(step, 1, device), 1e-9)))


def _timed(step: Callable[[], Any], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls


def step_of(model: nn.Module, sample: Tensor, training: bool) -> Callable[[], Any]:
    """Inference without gradients, or forward and backward of the sum of outputs, to be timed; sets the mode."""
    model.train(training)
    if not training:
        return torch.no_grad()(lambda: model(sample))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(sample).sum().backward()

    return step
