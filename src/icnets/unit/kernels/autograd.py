"""What a unit's training keeps for backward: as little, in as few passes, as torch's calls allow.

Derived from the formula: with u = y - w' s + b1 - b2, where the branch is silent z = y, and elsewhere
z - w' s + b1 - b2 = (1 + gain) u, so for a gain above -1 the sign of u, and u itself where it is positive, can be read
off the output. So z overwrites y, and backward needs z, which a batch norm behind the layer keeps anyway, and s, which
is 1/C of an activation, but neither y nor the branch.

If something overwrites z in place before backward (a convolution followed by ``ReLU(inplace=True)`` without a norm), y
is computed again. In half precision, and under autocast, the sums, the collision and its gradients are computed in
single precision and z is rounded once; a branch whose argument is smaller than that rounding can count as silent in
backward.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from icnets.unit.kernels import native
from icnets.unit.receptive_field import channel_sum

_PLAIN = {Tensor, torch.nn.Parameter}
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_is_batched, _is_legacy_batched = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
_OVERWRITTEN = "modified by an inplace operation"


def plain_mode(*tensors: Tensor) -> bool:
    """Whether this is ordinary eager execution, on torch's own layout: nothing traces, transforms or intercepts."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    for t in tensors:  # a generator would take as long as all of this
        if type(t) not in _PLAIN or t.layout is not torch.strided or not (t.is_cpu or t.is_cuda):
            return False
    return True


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether autograd follows what is computed of ``tensors``."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _followed(*tensors: Tensor) -> bool:
    """Whether backward is followed for second derivatives, or run by vmap, as for ``is_grads_batched``."""
    return torch.is_grad_enabled() or any(_is_legacy_batched(t) or _is_batched(t) for t in tensors)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """In it, operators compute in the types of their arguments."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def lowered(*tensors: Any) -> tuple[Any, ...]:
    """``tensors`` as autocast, if enabled, gives them to a convolution: it leaves double precision alone."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


class ConvAndSum(torch.autograd.Function):
    """A convolution, and its input's sums over receptive fields if ``compiled``, over channels if not.

    Backward adds the gradient of the sums to the convolution's in place.
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
        nd, kernel = len(stride), list(weight.shape[2:])
        ctx.options = (stride, padding, dilation, False, [0] * nd, groups)
        ctx.compiled, ctx.windows = compiled, (kernel, stride, padding, dilation)
        conv = (x, weight, bias, stride, padding, dilation, groups)
        try:  # the sum first: it leaves x in the cache for the convolution
            if compiled:
                s = native.operator("field_sums")(x, kernel, stride, padding, dilation, groups)
            else:
                s = channel_sum(x, groups, kernel, stride, padding)
                ones = [1] * nd  # windows of one place, each or each that a stride leaves
                ctx.windows = (ones, ones if s.shape[2:] == x.shape[2:] else stride, [0] * nd, ones)
        except Exception:
            CONVOLUTIONS[nd](*conv)  # torch's own message
            raise
        return CONVOLUTIONS[nd](*conv), s

    @staticmethod
    def backward(ctx: Any, dy: Tensor, ds: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        sizes = None if bias is None else [len(bias)]
        wanted = ctx.needs_input_grad[:3]
        dx, dw, db = torch.ops.aten.convolution_backward.default(dy, x, weight, sizes, *ctx.options, wanted)
        if dx is not None:
            if _followed(dx, ds) or (ctx.compiled and not native.serves(dx, sums=ds)):
                dx = (dx + _spread(ds, dx, *ctx.windows)).type_as(dx)
            elif ctx.compiled:
                native.operator("add_field_gradient_")(dx, ds, *ctx.windows)
            else:
                seen = dx[(..., *(slice(None, None, step) for step in ctx.windows[1]))]
                seen.unflatten(1, [ds.size(1), -1]).add_(ds.unsqueeze(2))
        return dx, dw, db, None, None, None, None, None


def _spread(
    ds: Tensor, like: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient of sums over receptive fields, as a transposed convolution with ones, which autograd can follow."""
    groups, nd = ds.size(1), len(kernel)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    beyond = [like.size(2 + i) - (ds.size(2 + i) - 1) * stride[i] - reach[i] for i in range(nd)]
    ones = torch.ones([groups, 1, *kernel], dtype=ds.dtype, device=ds.device)
    total = torch.convolution(ds, ones, None, stride, padding, dilation, True, beyond, groups)
    return total.repeat_interleave(like.size(1) // groups, 1)


class Collide(torch.autograd.Function):
    """The collision of y, which it overwrites; only z and s are kept.

    ``forward`` is :func:`icnets.unit.functional.collide_`, ``backward`` its gradients.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        forward: Callable[..., Tensor],
        backward: Callable[..., Any],
        y: Tensor,
        s: Tensor,
        collision: Tensor,
        offset: Tensor | None,
        gain: Tensor | None,
        factor: float,
    ) -> Tensor:
        z = forward(y, s, collision, factor, offset, gain)
        ctx.mark_dirty(y)
        # z alone goes through autograd's own keeping: if it is overwritten, the rest must still be at hand.
        ctx.save_for_backward(z)
        ctx.rest = (s, collision, offset, gain)
        ctx.versions = _versions(ctx.rest)
        ctx.gradients, ctx.factor = backward, factor
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.versions != _versions(ctx.rest):
            raise RuntimeError(f"a parameter of an IC layer was {_OVERWRITTEN} between forward and backward")
        z, is_y = _output(ctx)
        followed = _followed(dz)
        with without_autocast(z.device.type):  # where backward is called within it: sums stay exact
            found = ctx.gradients(dz, z, is_y, *ctx.rest, ctx.factor, followed)
        return (None, None, *found, None)


def weighted_sums(m: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of m ``(N, C, *L)``: the sum over each group's channels of ``m * v``, and over all places of ``m * s``.

    They are products of matrices, which need no memory of m's size.
    """
    n, groups, *places = s.shape
    members = m.size(1) // groups
    if members == 1:
        return m * v.view([-1] + [1] * len(places)), (m * s).sum([0, *range(2, m.dim())])
    v = v.view(groups, members)
    if m.is_contiguous():
        table = m.reshape(n, groups, members, -1)
        ds = torch.matmul(v.unsqueeze(1), table).view(s.shape)
        return ds, torch.matmul(table, s.reshape(n, groups, -1, 1)).sum([0, 3]).view(-1)
    table = m.movedim(1, -1).reshape(-1, groups, members).movedim(1, 0)
    ds = torch.bmm(table, v.unsqueeze(2)).view(groups, n, *places).movedim(0, 1)
    return ds, torch.bmm(table.mT, s.movedim(1, 0).reshape(groups, -1, 1)).view(-1)


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
