"""The sum of the inputs in each receptive field: ``s``, once per group of channels, for one read of the input (ours).

It equals a convolution with an all-ones kernel, which would cost as much as the layer's own. Here the channels are
summed first and the window second, on a map that is 1/C of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "channel_sum",
    "linear_sum",
    "padding_pairs",
    "per_dimension",
    "receptive_field_mean",
    "receptive_field_sum",
    "sum_padding",
    "transposed_sum",
    "window_mean",
    "window_size",
]

_POOLING: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def per_dimension(values: list[int], nd: int) -> list[int]:
    """One int for each of ``nd`` dimensions: torch lets one stand for all of them, alone or in a list."""
    if isinstance(values, int):
        return [values] * nd
    return list(values) * nd if len(values) == 1 else list(values)


def write_out_(conv: nn.Module) -> None:
    """Gives a convolution's numbers for its windows one for each dimension, for whom a single one isn't enough."""
    for name in ("stride", "padding", "dilation", "output_padding"):
        if not isinstance(value := getattr(conv, name, ""), str):
            setattr(conv, name, tuple(per_dimension(value, len(conv.kernel_size))))  # type: ignore[arg-type]


def pad_pairs(padding: list[int], nd: int) -> list[int]:
    """Symmetric padding per dimension, as the (before, after) pairs, last dimension first, of ``F.pad``."""
    return [p for p in reversed(per_dimension(padding, nd)) for _ in range(2)]


def padding_pairs(padding: int | str | Sequence[int], kernel: list[int], dilation: list[int]) -> list[int]:
    """A convolution's padding as pairs for ``F.pad``: last dimension first, (before, after)."""
    if not isinstance(padding, str):
        return pad_pairs(padding, len(kernel))  # type: ignore[arg-type]
    if padding not in ("same", "valid"):
        raise ValueError(f"padding is {padding!r}; as a string it must be 'same' or 'valid'")
    pairs: list[int] = []
    for k, d in reversed(list(zip(kernel, per_dimension(dilation, len(kernel)), strict=True))):
        total = d * (k - 1) if padding == "same" else 0
        pairs += [total // 2, total - total // 2]
    return pairs


def sum_padding(conv: nn.Module) -> list[int]:
    """The padding that ``conv``, one of torch's convolutions, gives its input, as pairs for ``F.pad``."""
    if conv.padding_mode != "zeros":
        return list(conv._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    return padding_pairs(conv.padding, conv.kernel_size, conv.dilation)  # type: ignore[arg-type]


def dense(x: Tensor) -> Tensor:
    """``x`` in the layout that all operators take; torch's own layers also take oneDNN's and sparse ones."""
    if x.is_nested:
        raise NotImplementedError("an IC layer takes no nested tensor; give it torch.nested.to_padded_tensor's")
    return x.to_dense() if x.is_mkldnn or x.is_sparse or x.is_sparse_csr else x


def window_size(kernel_size: list[int]) -> int:
    """Places in the window."""
    return math.prod(kernel_size)


def channel_sum(x: Tensor, groups: int, kernel_size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Sum over each group's channels: ``(N, groups, *L)``, and only at the places that some window sees.

    A window of one place, unpadded, sees every ``stride``-th place: the result is ``(N, groups, *L_out)``.

    Returns:
        float64 for a float64 input and float32 otherwise: half-precision sums may exceed float16's range.
    """
    nd = len(kernel_size)
    if window_size(kernel_size) == 1 and max(padding) == 0:
        for i in range(nd):
            if stride[i] > 1:
                x = torch.ops.aten.slice(x, i - nd, 0, 9223372036854775807, stride[i])
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    if groups == 1:
        return x.sum([-nd - 1], keepdim=True, dtype=dtype)
    if groups == x.size(-nd - 1):
        return x.to(dtype)
    return x.unflatten(-nd - 1, [groups, -1]).sum([-nd - 1], dtype=dtype)


def window_mean(
    total: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    padding_mode: str = "zeros",
) -> Tensor:
    """Mean of :func:`channel_sum`'s map over each window: ``(N, groups, *L_out)``."""
    if max(padding) > 0 and _pool_pads(kernel_size, padding, dilation, padding_mode):
        return _pool(total, kernel_size, stride, [padding[2 * i] for i in range(len(kernel_size) - 1, -1, -1)])
    if max(padding) > 0:
        total = F.pad(total, padding, mode="constant" if padding_mode == "zeros" else padding_mode)
    elif window_size(kernel_size) == 1:
        return total
    if max(dilation) > 1:
        return _dilated_mean(total, kernel_size, stride, dilation)
    return _pool(total, kernel_size, stride, [0] * len(kernel_size))


def _pool_pads(kernel_size: list[int], padding: list[int], dilation: list[int], padding_mode: str) -> bool:
    # Pooling pads with zeros, symmetrically, by at most half of the window; in 3-D only what is large enough already.
    if padding_mode != "zeros" or max(dilation) > 1 or len(kernel_size) == 3:
        return False
    for i in range(len(kernel_size)):
        if padding[2 * i] != padding[2 * i + 1] or 2 * padding[2 * i] > kernel_size[len(kernel_size) - 1 - i]:
            return False
    return True


def _pool(x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    # Pooling is on no autocast list, so a float32 map stays float32; a convolution would be cast down.
    return _POOLING[len(kernel_size)](x, kernel_size, stride, padding)


def _dilated_mean(x: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    # A window is separable, so a few shifted views per dimension do; pooling knows no dilation.
    nd = len(kernel_size)
    for i in range(nd):
        length = x.size(i - nd) - dilation[i] * (kernel_size[i] - 1)
        total = x.narrow(i - nd, 0, length)
        for k in range(1, kernel_size[i]):
            total = total + x.narrow(i - nd, k * dilation[i], length)
        x = total / kernel_size[i]
    return _pool(x, [1] * nd, stride, [0] * nd)


def receptive_field_sum(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    padding_mode: str = "zeros",
    scale: float = 1.0,
) -> Tensor:
    """Sum of the inputs in each receptive field, times ``scale`` (paper: ``s`` is the plain sum).

    It equals a convolution with an all-ones kernel over the padded input, whatever the padding mode.

    Args:
        x: input ``(N, C, *L)`` or ``(C, *L)``, floating point.
        kernel_size: one int per spatial dimension.
        stride: of the windows; as in torch, one int in the list may stand for all dimensions, as in ``dilation``.
        padding: pairs as ``F.pad`` takes them: last dimension first, (before, after).
        dilation: of the windows.
        groups: groups of the convolution; ``C`` must be a multiple of it.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        scale: factor on the sum, applied before it can be rounded to a narrower type.

    Returns:
        ``(N, groups, *L_out)``, float64 for a float64 input and float32 otherwise: the sum of half-precision
        inputs may exceed float16's range.
    """
    mean = receptive_field_mean(x, kernel_size, stride, padding, dilation, groups, padding_mode)
    return mean * (scale * window_size(kernel_size))


def receptive_field_mean(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """:func:`receptive_field_sum` divided by the places in a window: a mean over places of sums over channels."""
    stride, dilation = per_dimension(stride, len(kernel_size)), per_dimension(dilation, len(kernel_size))
    total = channel_sum(dense(x), groups, kernel_size, stride, padding)
    return window_mean(total, kernel_size, stride, padding, dilation, padding_mode)


def transposed_sum(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_size: list[int],
    scale: float = 1.0,
) -> Tensor:
    """Sum of the inputs that a transposed convolution brings to each place of its output, times ``scale`` (ours).

    It equals a transposed convolution with an all-ones kernel. Transposing one is a convolution of step 1 over the
    input with ``stride - 1`` zeros between its places, so the sum is over windows of that.

    Args:
        x: input ``(N, C, *L)`` or ``(C, *L)``, floating point.
        kernel_size, stride, padding, dilation: of the transposed convolution, one int per spatial dimension.
        groups: groups of the convolution.
        output_size: spatial size of the convolution's output, whatever its ``output_padding`` is.
        scale: factor on the sum.

    Returns:
        ``(N, groups, *output_size)``, float64 for a float64 input and float32 otherwise.
    """
    nd = len(kernel_size)
    ones = [1] * nd
    stride, padding, dilation = per_dimension(stride, nd), per_dimension(padding, nd), per_dimension(dilation, nd)
    total = channel_sum(dense(x), groups, ones, ones, [0])
    pairs: list[int] = []
    for j in range(nd):
        i = nd - 1 - j  # F.pad begins with the last dimension
        spread = (total.size(i - nd) - 1) * stride[i] + 1
        if stride[i] > 1:
            apart = F.pad(total.unsqueeze(i - nd), [0, 0] * j + [0, stride[i] - 1])
            total = apart.flatten(i - nd - 1, i - nd).narrow(i - nd, 0, spread)
        reach = dilation[i] * (kernel_size[i] - 1)
        pairs.append(reach - padding[i])
        pairs.append(output_size[i] + padding[i] - spread)
    mean = window_mean(F.pad(total, pairs), kernel_size, ones, [0], dilation)
    return mean * (scale * window_size(kernel_size))


def linear_sum(x: Tensor, scale: float = 1.0) -> Tensor:
    """Sum over the last dimension of ``x`` ``(*, C)``, times ``scale``: ``(*, 1)``, float32 at least."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return dense(x).sum([-1], keepdim=True, dtype=dtype) * scale


# They decide by dtypes and sizes, which torch.fx cannot trace through; as leaves they are recorded whole.
torch.fx.wrap("receptive_field_sum")
torch.fx.wrap("transposed_sum")
torch.fx.wrap("linear_sum")
