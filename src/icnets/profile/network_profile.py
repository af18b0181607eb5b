"""What whole networks cost beside the first of them, and the table that shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icnets.profile.measure import (
    Count,
    Latency,
    count_macs,
    count_parameters,
    measure_latency,
    memory_for_backward,
)
from icnets.support.tables import Table
from icnets.unit.kernels import native


@dataclass(frozen=True)
class Profile:
    """Costs of one network: MACs and times per image, bytes per batch; ratios are to the basic network."""

    name: str
    parameters: Count
    macs: Count
    inference: Latency
    training: Latency
    memory_bytes: int
    memory_ratio: float


def profile(
    models: Mapping[str, nn.Module], sample: Tensor, *, rounds: int = 11, threads: int | None = None
) -> list[Profile]:
    """Measures ``models`` on ``sample`` ``(N, C, H, W)``; the first is the one that ratios are taken to.

    Raises ValueError as :func:`icnets.profile.measure.measure_latency` does.
    """
    inference = measure_latency(models, sample, rounds=rounds, threads=threads)
    training = measure_latency(models, sample, rounds=rounds, threads=threads, training=True)
    memory = {name: memory_for_backward(model, sample) for name, model in models.items()}
    first = max(memory[next(iter(models))], 1)
    counts = {name: (count_parameters(model), count_macs(model, sample)) for name, model in models.items()}
    return [Profile(n, *counts[n], inference[n], training[n], memory[n], memory[n] / first) for n in models]


def profile_table(profiles: Sequence[Profile], sample: Tensor) -> Table:
    """The profiles as a table; each time and each memory stands with its ratio to the first row's."""
    rows = [
        (
            p.name,
            p.parameters.format(),
            p.macs.format(),
            f"{p.inference.ms_per_image:.3g} (×{p.inference.ratio:.2f})",
            f"{p.training.ms_per_image:.3g} (×{p.training.ratio:.2f})",
            f"{p.memory_bytes / 2**20:.1f} (×{p.memory_ratio:.2f})",
        )
        for p in profiles
    ]
    saved = "tensors that autograd saves" if sample.device.type == "cpu" else "peak of a forward and backward pass"
    return Table(
        f"{profiles[0].name}: {conditions(sample, profiles[0].inference.threads)}",
        ("network", "parameters (IC)", "MACs/image (IC)", "inference, ms/image", "training, ms/image", "memory, MiB"),
        rows,
        [
            f"(×): against {profiles[0].name}, median over {profiles[0].inference.rounds} interleaved rounds in eager "
            "mode; training is forward and backward.",
            f"Memory for backward: {saved}, for the batch, without parameters.",
            *kernels_note(sample),
        ],
    )


def conditions(sample: Tensor, threads: int) -> str:
    """What is measured, on what, by what: the first line of a table."""
    n, c, h, w = sample.shape
    device = "CPU" if sample.device.type == "cpu" else torch.cuda.get_device_name(sample.device)
    return (
        f"batch {n}, {c}×{h}×{w}, {str(sample.dtype).removeprefix('torch.')}, {device}, "
        f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    )


def kernels_note(sample: Tensor) -> list[str]:
    """What the IC units compute with, on a CPU, and what would be faster."""
    if sample.device.type != "cpu":
        return []
    if native.loaded():
        return ["IC units compute with the C++ kernels of icnets build."]
    return ["IC units compute with PyTorch's own operators; the C++ kernels of `icnets build` are faster."]
