"""The collision in eager mode: as few passes over memory, and as little kept for backward, as torch's calls allow.

Derived from the formula (ours): with u = y - w' s + b1, where the branch is silent z = y, and elsewhere
z - w' s + b1 = (1 + gain) u, so for a gain above -1 the sign of u, and u itself where it is positive, can be read off
the output. Backward therefore needs z, which a batch norm behind the layer keeps anyway, and s, which is 1/C of an
activation, but neither y nor the branch.

If something overwrites z in place before backward (a convolution followed by ``ReLU(inplace=True)`` without a norm),
y is computed again from what the convolution has kept.

The environment variable ``ICNETS_FUSED=0`` turns these paths off.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["collide", "serves"]

_ENABLED = os.environ.get("ICNETS_FUSED", "1") != "0"
_EXACT = (torch.float32, torch.float64)
_LEAST_GAIN = -0.5  # u is read off z by a division by 1 + gain
_OVERWRITTEN = "modified by an inplace operation"


def _plain_mode(y: Tensor) -> bool:
    """Whether this is ordinary eager execution: nothing traces, transforms or intercepts."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or type(y) not in (Tensor, torch.nn.Parameter)
    )


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def serves(
    y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, gain: Tensor | None, spatial_dims: int
) -> bool:
    """Whether :func:`collide` can take the place of the formula; if not, the formula's own operators run."""
    if not _ENABLED or not _plain_mode(y):
        return False
    if not _differentiable(y, s, collision, offset, gain):
        return True
    # Only behind a convolution can y be had again, and half-precision sums keep the formula.
    behind_conv = y.grad_fn is not None and y.grad_fn.name() == "ConvolutionBackward0"
    if not behind_conv or spatial_dims == 0 or y.dtype not in _EXACT or s.dtype != y.dtype:
        return False
    # On other devices the look at the gain would wait for the whole queue.
    return gain is None or (y.device.type == "cpu" and bool((gain > _LEAST_GAIN).all()))


def collide(
    y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, bias: Tensor | None, gain: Tensor | None, nd: int
) -> Tensor:
    """``z = y + gain * relu(y - collision * s + offset)``; shapes as in :func:`icnets.functional.collide`.

    Args:
        offset: ``(C_out,)``, b1 - b2, or None for 0.
        bias: ``(C_out,)``, b2, which ``y`` contains.
        nd: number of spatial dimensions.
    """
    if _differentiable(y, s, collision, offset, gain):
        z: Tensor = _Collide.apply(y, s, collision, offset, gain, bias, nd)
        return z
    u = _argument(y, s, collision, offset, nd).relu_()
    if gain is not None:
        u.mul_(gain.view([-1] + [1] * nd))
    return u.add_(y).type_as(y)


def _argument(y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, nd: int) -> Tensor:
    """``y - collision * s + offset`` as a new tensor in y's memory format."""
    groups, ones = s.size(-nd - 1), [1] * nd
    u = torch.empty_like(y, dtype=torch.promote_types(y.dtype, s.dtype))
    if groups == 1:
        torch.addcmul(y, collision.view([-1] + ones), s, value=-1, out=u)
    else:
        split = [groups, -1]
        vector, sums = collision.view(split + ones), s.unsqueeze(-nd - 1)
        torch.addcmul(y.unflatten(-nd - 1, split), vector, sums, value=-1, out=u.unflatten(-nd - 1, split))
    return u if offset is None else u.add_(offset.view([-1] + ones))


def _argument_plainly(y: Tensor, s: Tensor, collision: Tensor, offset: Tensor | None, nd: int) -> Tensor:
    """The same by operators that autograd can follow."""
    product = collision.view([s.size(-nd - 1), -1] + [1] * nd) * s.unsqueeze(-nd - 1)
    u = y - product.flatten(-nd - 2, -nd - 1)
    return u if offset is None else u + offset.view([-1] + [1] * nd)


class _Collide(torch.autograd.Function):
    """The training path: four passes forward, about five backward, and only z and s kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        y: Tensor,
        s: Tensor,
        collision: Tensor,
        offset: Tensor | None,
        gain: Tensor | None,
        bias: Tensor | None,
        nd: int,
    ) -> Tensor:
        z = _argument(y, s, collision, offset, nd).relu_()
        if gain is not None:
            z.mul_(gain.view([-1] + [1] * nd))
        z.add_(y)
        # z alone goes through autograd's own keeping: if it is overwritten, the rest must still be at hand.
        ctx.save_for_backward(z)
        ctx.rest = (s, collision, offset, gain, bias)
        ctx.versions = _versions(ctx.rest)
        ctx.nd = nd
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.versions != _versions(ctx.rest):
            raise RuntimeError(f"a parameter of an IC layer was {_OVERWRITTEN} between forward and backward")
        s, collision, offset, gain, _ = ctx.rest
        nd, needed = ctx.nd, ctx.needs_input_grad
        over = [d for d in range(-dz.dim(), 0) if d != -nd - 1]
        factor = None if gain is None else gain.view([-1] + [1] * nd)
        with torch.no_grad():
            z, is_y = _output(ctx)
            t = _argument(z, s, collision, offset, nd)
        d_gain = None
        if torch.is_grad_enabled():  # double backward: by operators that autograd can follow
            m = dz * (t > 0).type_as(dz)
            if factor is not None:
                if is_y:
                    raise RuntimeError(
                        "double backward needs the output of an IC layer, which was overwritten in place"
                    )
                d_gain = (m * _argument_plainly(z, s, collision, offset, nd) / (1 + factor)).sum(over)
                m = m * factor
            ds, dv, do = _reduce_plainly(m, s, collision, nd)
            dy = dz + m
        else:
            if factor is not None and needed[4]:
                d_gain = t.relu().mul_(dz).sum(over)
                d_gain = d_gain if is_y else d_gain / (1 + gain)
            m = torch.ops.aten.threshold_backward.grad_input(dz, t, 0, grad_input=t)
            if factor is not None:
                m.mul_(factor)
            ds, dv, do = _reduce(m, s, collision, nd, needed[1:4])
            dy = m.add_(dz)
        return dy, ds, dv, do if offset is not None else None, d_gain, None, None


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
        bias = ctx.rest[4]
        y = torch.convolution(
            conv._saved_input,
            conv._saved_weight,
            None if bias is None else bias.detach(),
            conv._saved_stride,
            conv._saved_padding,
            conv._saved_dilation,
            conv._saved_transposed,
            conv._saved_output_padding,
            conv._saved_groups,
        )
        return y, True
    return z, False


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _reduce_plainly(m: Tensor, s: Tensor, collision: Tensor, nd: int) -> Gradients:
    """Gradients of s, of the collision weight and of the offset, from the branch's gradient m."""
    groups, channel = s.size(-nd - 1), -nd - 1
    over = [d for d in range(-m.dim(), 0) if d != channel]
    grouped = m.unflatten(channel, [groups, -1])
    ds = -(grouped * collision.view([groups, -1] + [1] * nd)).sum(channel)
    product = (grouped * s.unsqueeze(channel)).flatten(channel - 1, channel)
    return ds, -product.sum(over), m.sum(over)


def _reduce(m: Tensor, s: Tensor, collision: Tensor, nd: int, needed: tuple[bool, ...]) -> Gradients:
    """The same by matrix-vector products, which read m once, where one group and a dense batch allow it."""
    if s.size(-nd - 1) > 1 or m.dim() != nd + 2 or m.device.type != "cpu" or m.numel() == 0:
        return _reduce_plainly(m, s, collision, nd)
    ds = dv = do = None
    channels = m.size(1)
    if m.is_contiguous():
        rows = m.flatten(2)
        if needed[0]:
            ds = torch.bmm(collision.view(1, 1, -1).expand(len(m), 1, channels), rows).neg_().view_as(s)
        if needed[1]:
            sums = s.flatten(1)
            dv = torch.zeros_like(collision)
            for row, total in zip(rows, sums, strict=True):
                dv.addmv_(row, total, alpha=-1)
    else:
        table = m.movedim(1, -1).reshape(-1, channels)  # a view where channels come last
        if needed[0]:
            ds = torch.mv(table, collision).neg_().view(s.movedim(1, -1).shape).movedim(-1, 1)
        if needed[1]:
            dv = torch.mm(s.movedim(1, -1).reshape(1, -1), table).neg_().flatten()
    if needed[2]:
        do = m.sum([d for d in range(m.dim()) if d != 1])
    return ds, dv, do
