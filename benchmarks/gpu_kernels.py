"""Our GPU kernels alone: the bandwidth that each achieves, beside that of a copy."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

from icnets.support.rounds import interleaved
from icnets.unit.kernels.gpu.layout import Layout

__all__ = ["copy_bandwidth", "kernel_rows"]

# Channels, groups and side of ResNet-50's, ResNeXt-50's and MobileNetV2's units.
SHAPES = [(64, 1, 56), (256, 1, 56), (512, 1, 28), (2048, 1, 7), (128, 32, 56), (96, 96, 56)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.empty((1 << 29) if device.type == "cuda" else 1 << 20, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 5, 0.05, device=device)["copy"]
    return 2 * source.nbytes / statistics.median(times)


def kernel_rows(device: torch.device, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each pass and shape: seconds, bytes that it must move, and their quotient."""
    x = torch.empty(1, dtype=getattr(torch, args.dtype), device=device)
    if device.type != "cuda" or "triton" not in args.engines or find_spec("triton") is None:
        return
    batch = max(args.batches)
    for channels, groups, side in SHAPES:
        for name, (step, moved) in _passes(x, batch, channels, groups, side).items():
            seconds = statistics.median(interleaved({name: step}, 5, 0.02, device=device)[name])
            yield {
                "kernel": f"{name} {channels}/{groups} {side}²",
                "batch": batch,
                "dtype": args.dtype,
                "seconds": seconds,
                "bandwidth": moved / seconds,
            }


def _passes(
    like: torch.Tensor, batch: int, channels: int, groups: int, side: int
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each pass as a call, with the bytes of activations that it reads and writes."""
    from icnets.unit.kernels.gpu import collide

    last = {"memory_format": torch.channels_last}
    y = torch.randn(batch, channels, side, side, device=like.device).to(like.dtype).contiguous(**last)
    d = torch.randn_like(y)
    s = torch.randn(batch, groups, side, side, device=like.device).contiguous(**last)
    v = torch.randn(channels, device=like.device)
    layout = Layout.of(y, s)
    assert layout is not None
    full, small = y.nbytes, s.nbytes
    return {
        "collide": (lambda: collide.collide_(y, s, layout, v, 0.1, v, None), 2 * full + small),
        "collide backward": (
            lambda: collide.collide_backward(y, s, layout, d, True, v, 0.1, v, None),
            3 * full + 2 * small,
        ),
    }
