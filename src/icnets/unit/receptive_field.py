"""The sum of the inputs in each receptive field: ``s``, once per group of channels, for one read of the input.

It equals a convolution with an all-ones kernel, which would cost as much as the layer's own. Here the channels are
summed first and the window second, on a map that is 1/C of the input.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

Windows = tuple[list[int], Any, list[int], Any]  # kernel size, stride, padding in pairs and dilation

_POOLING: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def per_dimension(values: Any, nd: int) -> list[int]:
    """One int for each of ``nd`` dimensions: torch lets one stand for all of them, alone or in a list."""
    values = [values] if isinstance(values, int) else list(values)
    return values * nd if len(values) == 1 else values


def write_out_(conv: nn.Module) -> None:
    """Gives a convolution's numbers for its windows one for each dimension, for whom a single one isn't enough."""
    for name in ("stride", "padding", "dilation", "output_padding"):
        if not isinstance(value := getattr(conv, name, ""), str):
            setattr(conv, name, tuple(per_dimension(value, len(conv.kernel_size))))  # type: ignore[arg-type]


def padding_pairs(padding: int | str | Sequence[int], kernel: Sequence[int], dilation: Any) -> list[int]:
    """Returns a convolution's padding as pairs for ``F.pad``: last dimension first, (before, after)."""
    nd = len(kernel)
    if not isinstance(padding, str):
        return [p for p in reversed(per_dimension(padding, nd)) for _ in range(2)]
    if padding not in ("same", "valid"):
        raise ValueError(f"padding is {padding!r}; as a string it must be 'same' or 'valid'")
    reach = [d * (k - 1) for k, d in zip(kernel, per_dimension(dilation, nd), strict=True)]
    totals = reach[::-1] if padding == "same" else [0] * nd
    return [p for total in totals for p in (total // 2, total - total // 2)]


def padded(conv: Any, x: Tensor) -> tuple[Tensor, Any, tuple[Any, ...] | None]:
    """Pads the input of ``conv`` unless that is with zeros; returns also the padding left, and what was before."""
    if conv.padding_mode == "zeros":
        return x, conv.padding, None
    pairs, mode = conv._reversed_padding_repeated_twice, conv.padding_mode
    return F.pad(x, pairs, mode=mode), 0, (x, list(pairs), mode)


def dense(x: Tensor) -> Tensor:
    """``x`` in the layout that all operators take; torch's own layers also take oneDNN's and sparse ones."""
    if x.is_nested:
        raise NotImplementedError("an IC layer takes no nested tensor; give it torch.nested.to_padded_tensor's")
    return x.to_dense() if x.is_mkldnn or x.is_sparse or x.is_sparse_csr else x


def channel_sum(x: Tensor, groups: int, kernel_size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Sums over each group's channels: ``(N, groups, *L)``, and only at the places that some window sees.

    A window of one place, unpadded, sees every ``stride``-th place: the result is ``(N, groups, *L_out)``.

    Returns:
        float64 for a float64 input and float32 otherwise: half-precision sums may exceed float16's range.
    """
    nd = len(kernel_size)
    if math.prod(kernel_size) == 1 and max(padding) == 0:
        for i, step in enumerate(stride[:nd]):
            if step > 1:
                x = torch.ops.aten.slice(x, i - nd, 0, 9223372036854775807, step)
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    if groups == 1:
        return x.sum([-nd - 1], keepdim=True, dtype=dtype)
    if groups == x.size(-nd - 1):
        return x.to(dtype)
    return x.unflatten(-nd - 1, [groups, -1]).sum([-nd - 1], dtype=dtype)


def window_mean(
    total: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], mode: str = "zeros"
) -> Tensor:
    """Averages :func:`channel_sum`'s map over each window: ``(N, groups, *L_out)``."""
    nd, padded = len(kernel), max(padding) > 0
    before, after = padding[-2::-2], padding[::-2]
    if not padded and math.prod(kernel) == 1:
        return total
    # Pooling pads with zeros, symmetrically, by at most half of the window; in 3-D only what is large enough already.
    pools = padded and mode == "zeros" and max(dilation) == 1 and nd < 3 and before == after
    if not (pools and all(2 * p <= k for p, k in zip(before, kernel, strict=False))):
        total = F.pad(total, padding, mode="constant" if mode == "zeros" else mode) if padded else total
        before = [0] * nd
    if max(dilation) > 1:  # a window is separable, so a few shifted views per dimension do; pooling knows no dilation
        for i, (k, d) in enumerate(zip(kernel, dilation, strict=False), -nd):
            length = total.size(i) - d * (k - 1)
            shifted = [total.narrow(i, j * d, length) for j in range(k)]
            total = sum(shifted[1:], shifted[0]) / k
        kernel = [1] * nd
    # Pooling is on no autocast list, so a float32 map stays float32; a convolution would be cast down.
    return _POOLING[nd](total, kernel, stride, before)


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
    """Sums the inputs in each receptive field, times ``scale`` (paper: ``s`` is the plain sum).

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

    Example:
        >>> receptive_field_sum(torch.ones(1, 3, 4, 4), [2, 2], [2, 2], [0, 0, 0, 0], [1, 1])
        tensor([[[[12., 12.],
                  [12., 12.]]]])
    """
    mean = receptive_field_mean(x, (kernel_size, stride, padding, dilation), groups, padding_mode)
    return mean * (scale * math.prod(kernel_size))


def receptive_field_mean(x: Tensor, windows: Windows, groups: int, padding_mode: str) -> Tensor:
    """Divides :func:`receptive_field_sum` by the places in a window: a mean over places of sums over channels."""
    kernel_size, stride, padding, dilation = windows
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
    """Sums the inputs that a transposed convolution brings to each place of its output, times ``scale``.

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
    nd, ones = len(kernel_size), [1] * len(kernel_size)
    stride, padding, dilation = (per_dimension(v, nd) for v in (stride, padding, dilation))
    total = channel_sum(dense(x), groups, ones, ones, [0])
    pairs: list[int] = []
    for j in range(nd):
        i = nd - 1 - j  # F.pad begins with the last dimension
        spread = (total.size(i - nd) - 1) * stride[i] + 1
        if stride[i] > 1:
            apart = F.pad(total.unsqueeze(i - nd), [0, 0] * j + [0, stride[i] - 1])
            total = apart.flatten(i - nd - 1, i - nd).narrow(i - nd, 0, spread)
        pairs += [dilation[i] * (kernel_size[i] - 1) - padding[i], output_size[i] + padding[i] - spread]
    mean = window_mean(F.pad(total, pairs), kernel_size, ones, [0], dilation)
    return mean * (scale * math.prod(kernel_size))


def linear_sum(x: Tensor, scale: float = 1.0) -> Tensor:
    """Sum over the last dimension of ``x`` ``(*, C)``, times ``scale``: ``(*, 1)``, float32 at least."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return dense(x).sum([-1], keepdim=True, dtype=dtype) * scale


def column(vector: Tensor, spatial_dims: int) -> Tensor:
    """View a vector ``(C,)`` in the shape that broadcasts against ``(N, C, *L)``."""
    return vector.view([-1] + [1] * spatial_dims)


def plus_sums(
    y: Tensor, vector: Tensor, s: Tensor, spatial_dims: int, factor: float = 1.0, own: bool = False
) -> Tensor:
    """Compute ``y + factor * vector * s``, each channel with its group's sums; ``own``: y may be overwritten."""
    channel = -spatial_dims - 1
    groups = s.size(channel)
    # addcmul reads y once and keeps its memory format; a product made first would be another full-size tensor.
    if groups == 1 or groups == y.size(channel):
        return torch.addcmul(y, column(vector, spatial_dims), s, value=factor, out=y if own else None)
    wide, vector = y.unflatten(channel, [groups, -1]), vector.view([groups, -1] + [1] * spatial_dims)
    wide = torch.addcmul(wide, vector, s.unsqueeze(channel), value=factor, out=wide if own else None)
    return wide.flatten(channel - 1, channel)


# They decide by dtypes and sizes, which torch.fx cannot trace through; as leaves they are recorded whole.
torch.fx.wrap("receptive_field_sum")
torch.fx.wrap("transposed_sum")
torch.fx.wrap("linear_sum")
