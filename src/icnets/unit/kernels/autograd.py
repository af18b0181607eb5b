"""The IC convolution in eager mode: as few passes over memory, and as little kept for backward, as torch's calls allow.

Derived from the formula (ours): with u = y - w' s + b1 - b2, where the branch is silent z = y, and elsewhere
z - w' s + b1 - b2 = (1 + gain) u, so for a gain above -1 the sign of u, and u itself where it is positive, can be read
off the output. So z overwrites y, and backward needs z, which a batch norm behind the layer keeps anyway, and s, which
is 1/C of an activation, but neither y nor the branch.

Where :mod:`icnets.unit.kernels.native` was built, the passes on CPUs are one: memory is read and written once. If
something overwrites z in place before backward (a convolution followed by ``ReLU(inplace=True)`` without a norm), y is
computed again.

In half precision, and under autocast, the sums, the collision and its gradients are computed in single precision and z
is rounded once; a branch whose argument is smaller than that rounding can count as silent in backward.

On GPUs they are one each where :mod:`icnets.unit.kernels.gpu` serves.

The environment variable ``ICNETS_FUSED=0`` turns these paths off.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from icnets.unit.kernels import formula, gpu, native
from icnets.unit.kernels.passes import collide_, collide_backward
from icnets.unit.receptive_field import channel_sum, pad_pairs, padding_pairs, per_dimension, window_mean, window_size

__all__ = [
    "conv_leaky_relu",
    "ic_conv",
    "kept",
    "serves",
    "serves_deployed",
    "serves_post",
]

_ENABLED = os.environ.get("ICNETS_FUSED", "1") != "0"
_DEVICES = ("cpu", "cuda")
_EXACT = (torch.float32, torch.float64)
_TYPES = (*_EXACT, torch.float16, torch.bfloat16)
_PLAIN = {Tensor, torch.nn.Parameter}
_SMALL = 1 << 17  # elements of an activation below which a pass over it costs less than a call or two
_LEAST_GAIN = -0.5  # u is read off z by a division by 1 + gain
_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
# The packet's lookup is slow, so the one overload; absent from builds without oneDNN.
_FUSED_CONV = getattr(getattr(torch.ops.mkldnn, "_convolution_pointwise", None), "default", None)
_is_batched, _is_legacy_batched = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
_OVERWRITTEN = "modified by an inplace operation"


def _plain_mode(*tensors: Tensor) -> bool:
    """Whether this is ordinary eager execution, on torch's own layout: nothing traces, transforms or intercepts."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    return all(type(t) in _PLAIN and t.layout is torch.strided for t in tensors)


def _batched(*tensors: Tensor) -> bool:
    """Whether vmap runs the backward pass, as for ``is_grads_batched``; only operators with rules for it may run."""
    return any(_is_legacy_batched(t) or _is_batched(t) for t in tensors)


def _exact(x: Tensor) -> bool:
    """Whether products with ``x`` are computed in single or double precision."""
    return x.dtype in _EXACT and not torch.is_autocast_enabled(x.device.type)


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def serves(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    collision: Tensor,
    inner_bias: Tensor | None,
    gain: Tensor | None,
) -> bool:
    """Whether :func:`ic_conv` can take the place of the formula; if not, the formula's own operators run."""
    if not _ENABLED or not _plain_mode(x, weight):  # first: what is traced can't be asked for more
        return False
    if x.device.type not in _DEVICES or not x.is_floating_point() or x.dim() != weight.dim():
        return False
    if x.dim() - 2 not in _CONV or x.numel() == 0 or weight.numel() == 0:
        return False
    if not _differentiable(x, weight, bias, collision, inner_bias, gain):
        return True
    # Only behind a differentiable convolution can y be had again.
    if not _differentiable(x, weight, bias) or x.dtype not in _TYPES:
        return False
    if gain is None or gpu.serves(x):
        return True
    # On other devices the look at the gain would wait for the whole queue.
    return x.device.type == "cpu" and bool((gain > _LEAST_GAIN).all())


def ic_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    collision: Tensor,
    inner_bias: Tensor | None,
    gain: Tensor | None,
    scale: float = 1.0,
) -> Tensor:
    """``z = y + gain * relu(y - scale * collision * s + inner_bias - bias)``, y being the convolution of ``x``.

    Args:
        x: ``(N, C_in, *L)``.
        weight: ``(C_out, C_in / groups, *kernel)``.
        bias, collision, inner_bias, gain: ``(C_out,)``; see :func:`icnets.unit.functional.collide`.
        stride, padding, dilation: as torch's functional convolution takes them; padding is with zeros.
        scale: factor on s, the plain sum.

    Raises:
        RuntimeError: what torch's convolution raises for these arguments.
    """
    kernel = list(weight.shape[2:])
    stride, dilation = per_dimension(stride, len(kernel)), per_dimension(dilation, len(kernel))
    if isinstance(padding, str):
        pairs = padding_pairs(padding, kernel, dilation)
        if padding == "same" and stride != [1] * len(kernel):
            _CONV[len(kernel)](x, weight, bias, stride, padding, dilation, groups)  # which says why not
        if pairs[::2] != pairs[1::2]:
            x, pairs = F.pad(x, pairs), [0] * len(pairs)
        padding = pairs[::-2]
    padding = per_dimension(padding, len(kernel))
    offset = inner_bias if bias is None else -bias if inner_bias is None else inner_bias - bias
    if _differentiable(x, weight, bias, collision, inner_bias, gain):
        if torch.is_autocast_enabled(x.device.type):  # as it does it for a convolution
            x, weight, bias = _lowered(x), _lowered(weight), None if bias is None else _lowered(bias)
        with _without_autocast(x.device.type):
            unit = (collision, offset, gain, scale)
            return _followed(x, weight, bias, stride, padding, dilation, groups, *unit)
    compiled = native.serves(x, weight)
    if compiled:
        conv = (stride, padding, dilation, groups)
        return cast(Tensor, native.operator("ic_conv")(x, weight, bias, *conv, collision, scale, offset, gain))
    pairs, convolve = pad_pairs(padding, len(kernel)), _CONV[len(kernel)]
    factor = scale * window_size(kernel)
    try:  # the sum first: it leaves x in the cache for the convolution
        s = window_mean(channel_sum(x, groups, kernel, stride, pairs), kernel, stride, pairs, dilation)
    except Exception:
        convolve(x, weight, bias, stride, padding, dilation, groups)  # torch's own message
        raise
    y = convolve(x, weight, bias, stride, padding, dilation, groups)
    return collide_(y, s, collision, factor, offset, gain)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """In it, operators compute in the types of their arguments."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _lowered(t: Tensor) -> Tensor:
    """``t`` in autocast's type, which leaves double precision alone."""
    return t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(t.device.type))


def _followed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    scale: float,
) -> Tensor:
    """:func:`ic_conv` with what backward needs."""
    compiled = native.serves(x, weight)
    kernel = list(weight.shape[2:])
    pairs = pad_pairs(padding, len(kernel))
    y, s = _ConvAndSum.apply(x, weight, bias, stride, padding, dilation, groups, compiled)
    if not compiled:
        s = window_mean(s, kernel, stride, pairs, dilation)
        scale *= window_size(kernel)
    if gain is not None and gpu.serves(x):  # any gain: the branch can't be read off z, and y is kept
        return formula.collide(y, s, collision, offset, gain, scale)
    z: Tensor = _Collide.apply(y, s, collision, offset, gain, scale, len(stride))
    return z


def serves_deployed(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled deployed convolution can take ``x``, batched or not, for a layer padded with zeros."""
    if not _ENABLED or not _plain_mode(x) or not native.serves(x, weight):  # what is traced can't be asked for more
        return False
    return x.dim() == weight.dim() and x.numel() > 0 and not _differentiable(x)


def serves_post(v: Tensor, spatial_dims: int) -> bool:
    """Whether :func:`icnets.unit.kernels.passes.post_` can take the place of the deployed form's own operators."""
    if not _ENABLED or not _plain_mode(v) or v.device.type not in _DEVICES:
        return False
    return spatial_dims > 0 and v.dim() == spatial_dims + 2 and v.numel() > 0 and not _differentiable(v)


def conv_leaky_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    slope: float,
) -> Tensor | None:
    """``leaky_relu(conv2d(x))`` by one call of oneDNN's, as Inductor has it; None where that can't serve or gain."""
    if not (_ENABLED and _FUSED_CONV is not None and _plain_mode(x)) or x.dim() != 4 or x.numel() < _SMALL:
        return None
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not _exact(x):
        return None
    if _differentiable(x) or not torch._C._get_mkldnn_enabled() or torch._C._len_torch_dispatch_stack() > 0:
        return None
    return cast(Tensor, _FUSED_CONV(x, weight, bias, padding, stride, dilation, groups, "leaky_relu", [slope], ""))


class _ConvAndSum(torch.autograd.Function):
    """The convolution, and the sums of its input: over receptive fields if ``compiled``, over channels if not.

    Backward adds the latter's gradient in place.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (stride, padding, dilation, False, [0] * len(stride), groups)
        ctx.compiled = compiled
        kernel, convolve = list(weight.shape[2:]), _CONV[len(stride)]
        try:
            if compiled:
                s = native.operator("field_sums")(x, kernel, stride, padding, dilation, groups)
            else:
                s = channel_sum(x, groups, kernel, stride, pad_pairs(padding, len(kernel)))
        except Exception:
            convolve(x, weight, bias, stride, padding, dilation, groups)  # torch's own message
            raise
        return convolve(x, weight, bias, stride, padding, dilation, groups), s

    @staticmethod
    def backward(ctx: Any, dy: Tensor, ds: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        sizes = None if bias is None else [len(bias)]
        dx, dw, db = torch.ops.aten.convolution_backward.default(
            dy, x, weight, sizes, *ctx.options, ctx.needs_input_grad[:3]
        )
        if dx is not None:
            stride, padding, dilation, *_ = ctx.options
            followed = torch.is_grad_enabled() or _batched(dx, ds)
            if ctx.compiled and not followed and native.serves(dx, ds):
                native.operator("add_field_gradient_")(dx, ds, weight.shape[2:], stride, padding, dilation)
            elif ctx.compiled or followed:
                windows = [list(weight.shape[2:]), stride, padding, dilation]
                if not ctx.compiled:  # windows of one place, each or each that a stride leaves
                    ones = [1] * len(stride)
                    windows = [ones, ones if ds.shape[2:] == dx.shape[2:] else stride, [0] * len(stride), ones]
                dx = (dx + formula.spread(ds, dx, *windows)).type_as(dx)
            else:
                formula.add_at_steps_(dx, ds, stride)
        return dx, dw, db, None, None, None, None, None


class _Collide(torch.autograd.Function):
    """The collision of y, which it overwrites; only z and s are kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        y: Tensor,
        s: Tensor,
        collision: Tensor,
        offset: Tensor | None,
        gain: Tensor | None,
        factor: float,
        nd: int,
    ) -> Tensor:
        z = collide_(y, s, collision, factor, offset, gain)
        ctx.mark_dirty(y)
        # z alone goes through autograd's own keeping: if it is overwritten, the rest must still be at hand.
        ctx.save_for_backward(z)
        ctx.rest = (s, collision, offset, gain)
        ctx.versions = _versions(ctx.rest)
        ctx.factor, ctx.nd = factor, nd
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.versions != _versions(ctx.rest):
            raise RuntimeError(f"a parameter of an IC layer was {_OVERWRITTEN} between forward and backward")
        z, is_y = _output(ctx)
        s, collision, offset, gain = ctx.rest
        if torch.is_grad_enabled() or _batched(dz):
            plain = formula.collide_backward(dz, z, is_y, s, collision, offset, gain, ctx.factor, ctx.nd)
            return (*plain, None, None)
        with _without_autocast(z.device.type):  # where backward is called within it: sums stay exact
            return (*collide_backward(dz, z, is_y, s, collision, offset, gain, ctx.factor), None, None)


def kept(output: Tensor) -> list[Tensor]:
    """What the IC layers before ``output`` keep for backward where autograd's hooks don't see it: the sums."""
    nodes, seen, found = [output.grad_fn], set(), []
    while nodes:
        node: Any = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            found += [t for t in getattr(node, "rest", ())[:1] if t is not None]
    return found


def _versions(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple(-1 if t is None or t.is_inference() else t._version for t in tensors)


def _output(ctx: Any) -> tuple[Tensor, bool]:
    """z as it was, or else y, whose argument has the same sign; and whether it is y."""
    try:
        (z,) = ctx.saved_tensors
    except RuntimeError as error:
        if _OVERWRITTEN not in str(error):
            raise
        conv = ctx.next_functions[0][0]
        x, weight, bias = conv.saved_tensors
        return torch.convolution(x, weight, bias, *conv.options), True
    return z, False
