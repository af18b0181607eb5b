"""What a network costs: parameters, multiply-accumulates, time against another network, memory kept for backward.

All counts are ours, by hooks on torch's modules; what IC adds stands apart in each.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from icnets.support.hooks import undisturbed, watched
from icnets.support.plain import deepcopy
from icnets.support.rounds import interleaved, paired_ratio, step_of
from icnets.support.tables import Table, human
from icnets.unit.kernels import autograd as eager
from icnets.unit.kernels import native
from icnets.unit.layers import IC_LAYERS, ic_parameters

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (*_CONVS, *_TRANSPOSED, nn.Linear)
_SHORTEST = 0.01  # seconds of a measurement, which repeats a shorter pass


@dataclass(frozen=True)
class Count:
    """``total`` of something in a network, and the part ``ic`` of it that the collisions add."""

    total: int
    ic: int

    def format(self) -> str:
        """Text such as ``1.07 M (16.0 k)``: the whole, and the collisions' part where there is one."""
        return human(self.total) + (f" ({human(self.ic)})" if self.ic else "")


def count_parameters(model: nn.Module) -> Count:
    """Numbers of parameters; a shared one counts once, buffers don't count."""
    ic = {id(p): p.numel() for _, p in ic_parameters(model)}
    return Count(sum(p.numel() for p in model.parameters()), sum(ic.values()))


def _layer_macs(module: Any, x: Tensor, z: Tensor) -> Count:
    """Multiply-accumulates of one of the layers ``_COUNTED``, for a batch: input ``x`` and output ``z``."""
    # Channels are summed first, then a window of k² slides over one map per group; then z = y + relu(y - w's).
    if isinstance(module, nn.Linear):
        basic, sums = z.numel() * module.in_features, x.numel()
    else:
        window, groups = math.prod(module.kernel_size), module.groups
        terms = z.numel() * module.in_channels if isinstance(module, _CONVS) else x.numel() * module.out_channels
        basic, sums = terms // groups * window, x.numel() + z.numel() // module.out_channels * groups * window
    ic = sums + 2 * z.numel() if isinstance(module, IC_LAYERS) else 0
    return Count(basic + ic, ic)


def count_macs(model: nn.Module, sample: Tensor) -> Count:
    """Multiply-accumulates of one forward pass in eval mode, divided by the batch size.

    Counted: convolutions, transposed ones and linear layers, where they are modules. Not counted: normalisation,
    activations, pooling, and products of activations such as attention. What a collision adds: the channel sum (one
    addition per input element), the window sum (k² additions per place, once per group) and 2 operations per output
    element; each addition counts as a whole MAC, so the IC part is an upper bound.

    Args:
        model: any network that takes ``sample``.
        sample: one batch ``(N, C, *L)`` on the model's device.
    """
    found: list[Count] = []
    counted = [m for m in model.modules() if isinstance(m, _COUNTED)]
    with watched(counted, lambda *call: found.append(_layer_macs(*call))), undisturbed(model), torch.no_grad():
        model(sample)
    return Count(*(round(sum(getattr(c, part) for c in found) / sample.shape[0]) for part in ("total", "ic")))


@dataclass(frozen=True)
class Latency:
    """Time per image. ``ratio`` is the median of the ratios to the first network, each within one round."""

    ms_per_image: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    batch_size: int
    threads: int


@contextmanager
def use_threads(number: int | None) -> Iterator[int]:
    """Torch's threads for a while, None for as many as they are; gives their number."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def measure_latency(
    models: Mapping[str, nn.Module],
    sample: Tensor,
    *,
    rounds: int = 15,
    training: bool = False,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Measured time of each network beside the first one, in interleaved rounds.

    In every round each network runs once, in random order: see :func:`icnets.support.rounds.interleaved`. Times are
    medians over rounds; ratios are medians of the rounds' own ratios, with their quartiles.

    Args:
        models: name to network; the first is what the others are compared with. Modes and buffers are restored.
        sample: one batch ``(N, ...)`` on the networks' device.
        rounds: at least 1, after two calls of each to warm up.
        training: time forward and backward of a sum of outputs in train mode, without an optimizer's step; the
            default is the forward pass alone, in eval mode without gradients.
        threads: torch's threads while measuring; None leaves them as they are.
    """
    with use_threads(threads) as used:
        steps = {name: step_of(deepcopy(model), sample, training) for name, model in models.items()}
        times = interleaved(steps, rounds, _SHORTEST, device=sample.device)
    first, n = next(iter(times.values())), sample.shape[0]

    def latency(own: list[float]) -> Latency:
        ratio = paired_ratio(own, first)
        return Latency(1000 * statistics.median(own) / n, ratio.median, ratio.low, ratio.high, rounds, n, used)

    return {name: latency(own) for name, own in times.items()}


def memory_for_backward(model: nn.Module, sample: Tensor) -> int:
    """Bytes that one forward pass in train mode keeps for the backward pass.

    On the CPU these are the tensors that autograd saves, each storage once and at its full size, without the
    parameters and buffers; the input counts where a layer keeps it. On CUDA it is the peak of a forward and backward
    pass above what was allocated before. Modes, buffers and gradients are left as they were.
    """
    with undisturbed(model, evaluating=False), torch.enable_grad():
        model.train()
        return (_cuda_peak if sample.device.type == "cuda" else _saved)(model, sample)


def _saved(model: nn.Module, sample: Tensor) -> int:
    own = {StorageWeakRef(t.untyped_storage()) for t in [*model.parameters(), *model.buffers()]}
    saved: dict[StorageWeakRef, int] = {}  # weak: what a dead branch saved is gone by then, but its place isn't reused

    def pack(tensor: Tensor) -> Tensor:
        saved[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # an output itself would hold the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(sample)
        for t in eager.kept(output) if isinstance(output, Tensor) else ():
            pack(t)
    return sum(size for storage, size in saved.items() if storage not in own and not storage.expired())


def _cuda_peak(model: nn.Module, sample: Tensor) -> int:
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.cuda.synchronize(sample.device)
    torch.cuda.reset_peak_memory_stats(sample.device)
    before = torch.cuda.memory_allocated(sample.device)
    torch.autograd.grad(model(sample).sum(), trained, allow_unused=True)
    torch.cuda.synchronize(sample.device)
    return torch.cuda.max_memory_allocated(sample.device) - before


@torch.no_grad()
def agreement(model_a: nn.Module, model_b: nn.Module, loader: Any) -> float:
    """Share of inputs, in [0, 1], to which both networks give the same most likely class; eval mode, then restored.

    Args:
        model_a, model_b: networks with outputs ``(N, classes)``.
        loader: iterable of batches, at least one: a tensor, or a tuple or list whose first item is the input.
    """
    same = total = 0
    with undisturbed(model_a), undisturbed(model_b):
        for batch in loader:
            x = batch if isinstance(batch, Tensor) else batch[0]
            same += int((model_a(x).argmax(1) == model_b(x).argmax(1)).sum())
            total += len(x)
    return same / total


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


def profile(models: Mapping[str, nn.Module], sample: Tensor, *, rounds: int = 11) -> list[Profile]:
    """Measures ``models`` on ``sample`` ``(N, C, H, W)``; the first is the one that ratios are taken to."""
    inference = measure_latency(models, sample, rounds=rounds)
    training = measure_latency(models, sample, rounds=rounds, training=True)
    memory = {name: memory_for_backward(model, sample) for name, model in models.items()}
    first = max(memory[next(iter(models))], 1)
    counts = {name: (count_parameters(model), count_macs(model, sample)) for name, model in models.items()}
    return [Profile(n, *counts[n], inference[n], training[n], memory[n], memory[n] / first) for n in models]


def profile_table(profiles: Sequence[Profile], sample: Tensor) -> Table:
    """The profiles as a table; each time and each memory stands with its ratio to the first row's."""
    rows = []
    for p in profiles:
        times = [f"{time.ms_per_image:.3g} (×{time.ratio:.2f})" for time in (p.inference, p.training)]
        memory = f"{p.memory_bytes / 2**20:.1f} (×{p.memory_ratio:.2f})"
        rows.append((p.name, p.parameters.format(), p.macs.format(), *times, memory))
    first, threads, on_cpu = profiles[0].name, profiles[0].inference.threads, sample.device.type == "cpu"
    n, c, h, w = sample.shape
    notes = [
        f"(×): against {first}, median over {profiles[0].inference.rounds} interleaved rounds in eager mode; training "
        "is forward and backward.",
        f"Memory for backward: {'tensors that autograd saves' if on_cpu else 'peak of a forward and backward pass'}, "
        "for the batch, without parameters.",
    ]
    if on_cpu:
        slower = "PyTorch's own operators; the C++ kernels of `icnets build` are faster"
        notes.append(f"IC units compute with {'the C++ kernels of icnets build' if native.loaded() else slower}.")
    return Table(
        f"{first}: batch {n}, {c}×{h}×{w}, {str(sample.dtype).removeprefix('torch.')}, "
        f"{'CPU' if on_cpu else torch.cuda.get_device_name(sample.device)}, {threads} thread{'s' * (threads > 1)}, "
        f"torch {torch.__version__}",
        ("network", "parameters (IC)", "MACs/image (IC)", "inference, ms/image", "training, ms/image", "memory, MiB"),
        rows,
        notes,
    )
