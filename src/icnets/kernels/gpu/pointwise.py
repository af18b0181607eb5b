"""The deployed 1x1 convolution by one kernel, where that is faster than torch's convolution and a pass behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from icnets.kernels.gpu.choice import fastest
from icnets.kernels.gpu.layout import blocks
from icnets.kernels.gpu.pointwise_kernels import pointwise

__all__ = ["Post", "deployed", "launch"]

# Places, channels and inputs of a block; warps; stages.
BLOCKS = {
    "128x128": (128, 128, 64, 8, 3),
    "128x64": (128, 64, 64, 4, 4),
    "64x64": (64, 64, 64, 4, 4),
    "64x128": (64, 128, 64, 4, 4),
}

# Slopes or a uniform one, signs, w' on s, and an offset; see icnets.deploy.
Post = tuple[Tensor | None, float, Tensor | None, Tensor | None, Tensor | None]


def deployed(
    x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], post: Post, otherwise: Callable[[], Tensor]
) -> Tensor | None:
    """The deployed convolution of ``x`` ``(N, C_in, H, W)``; None where ``otherwise``, torch's way, is faster.

    ``x`` is in half precision with channels last, ``weight`` ``(C_out, C_in, 1, 1)``; no padding, one group.
    """
    ways: dict[str, Callable[[], Tensor]] = {
        name: lambda name=name: launch(x, weight, bias, stride, post, name)  # type: ignore[misc]
        for name in BLOCKS
    }
    flags = "".join("01"[t is not None] for t in post if not isinstance(t, float))
    what = f"deployed 1x1 {tuple(x.shape)} {x.dtype} to {len(weight)}, stride {tuple(stride)}, {flags}"
    choice = fastest(what, {**ways, "torch": otherwise}, x.device)
    return None if choice == "torch" else ways[choice]()


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, ...],
    post: Post,
    name: str,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The kernel with the blocks called ``name``; then the shortcut, of the output's kind, and ReLU."""
    slope, uniform_slope, sign, collision, offset = post
    (n, k, h, w), c = x.shape, len(weight)
    ho, wo = blocks(h, stride[0]), blocks(w, stride[1])
    out = torch.empty((n, c, ho, wo), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    bm, bn, bk, warps, stages = BLOCKS[name]
    absent = bias  # never read
    vectors = [absent if t is None else t for t in (slope, sign, collision, offset)]
    flags = {"SLOPE": slope, "SIGN": sign, "COLLISION": collision, "OFFSET": offset, "SHORTCUT": shortcut}
    pointwise[(blocks(n * ho * wo, bm), blocks(c, bn))](
        x, weight, bias, *vectors, out if shortcut is None else shortcut, out, uniform_slope,
        n * ho * wo, c, k, ho, wo, h, w,
        STEP_H=stride[0], STEP_W=stride[1], **{f: t is not None for f, t in flags.items()}, RELU=relu,
        BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
