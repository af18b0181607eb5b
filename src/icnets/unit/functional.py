"""The Inter-layer Collision (IC) unit on one page: its formula, its gradients, and by which path a unit runs.

For one output channel, with ``y = conv(x, W)`` and ``s`` the sum of the inputs in the receptive field::

    z = y + gain * relu(y - w' * s + inner_bias) + bias

Paper (arXiv 2011.11271, section on the IC neuron; arXiv 2102.03495): ``gain = 1``, ``w'`` one learned scalar per
output channel, ``inner_bias`` is b1 and ``bias`` is b2. Ours: ``gain`` (for warm starts), and learning ``w'`` on
another scale (see :class:`icnets.ICConv2d`), which is a change of units and not of the function.

A layer is torch's own convolution, ``s`` by :func:`receptive_field_sum` which reads ``x`` once, and
:func:`collide`, all of standard torch operators. In eager mode the same formula runs in place and by compiled kernels
wherever these can serve: :func:`convolution` decides for a unit, :func:`deployed_convolution` for its deployed form.
The environment variable ``ICNETS_FUSED=0`` turns these paths off. All of them are leaves for ``torch.fx``.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from icnets.unit import receptive_field
from icnets.unit.kernels import autograd, gpu, native
from icnets.unit.receptive_field import column, dense, linear_sum, plus_sums, receptive_field_sum

__all__ = ["collide", "ic_conv1d", "ic_conv2d", "ic_conv3d", "ic_linear", "receptive_field_sum"]

_ENABLED = os.environ.get("ICNETS_FUSED", "1") != "0"
_HALF = (torch.float16, torch.bfloat16)
_TYPES = (torch.float32, torch.float64, *_HALF)
_LEAST_GAIN = -0.5  # backward divides by 1 + gain, and needs it to be positive

# x, weight, bias, stride, padding, dilation and groups, as torch's convolutions take them.
Conv = tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]
# The collision, what is added inside the rectifier, and the gain.
Vectors = tuple[Tensor, Tensor | None, Tensor | None]
# Slope of each channel, or one for all, sign, collision and offset: see :func:`deployed`.
Post = tuple[Tensor | None, float, Tensor | None, Tensor | None, Tensor | None]
# Of y, s, collision, offset and gain.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


# -- the formula -----------------------------------------------------------------------------------------------------


def _collided(y: Tensor, s: Tensor, vectors: Vectors, factor: float, spatial_dims: int, own: bool = False) -> Tensor:
    """``y + gain * relu(y - factor * collision * s + offset)``; ``own``: in the memory of y."""
    collision, offset, gain = vectors
    u = plus_sums(y, collision, s, spatial_dims, -factor)
    if offset is not None:
        u = torch.add(u, column(offset, spatial_dims), out=u if own else None)
    u = F.relu(u, inplace=own)
    if gain is not None:
        u = torch.mul(u, column(gain, spatial_dims), out=u if own else None)
    return torch.add(y, u, out=y if own else None).type_as(y)


def _offset(inner_bias: Tensor | None, bias: Tensor | None) -> Tensor | None:
    return inner_bias if bias is None else -bias if inner_bias is None else inner_bias - bias


def collide(
    y: Tensor,
    s: Tensor,
    collision: Tensor,
    inner_bias: Tensor | None = None,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    spatial_dims: int = 2,
) -> Tensor:
    """Computes the collision ``z = y + gain * relu((y - bias) - collision * s + inner_bias)``.

    Paper: with ``collision = w'``, ``gain`` absent (1), ``inner_bias = b1`` and ``bias = b2``. ``y`` comes with
    ``bias`` in it, because convolutions add it for nothing; inside the rectifier it is taken out again.

    Args:
        y: the layer's output ``(N, C_out, *L)``, ``bias`` included.
        s: receptive-field sums ``(N, groups, *L)`` from :func:`receptive_field_sum`.
        collision: w', ``(C_out,)``.
        inner_bias: b1, ``(C_out,)``, or absent.
        bias: b2, ``(C_out,)``, or absent.
        gain: on the branch, ``(C_out,)``; absent means 1.
        spatial_dims: length of ``*L``; 0 for a linear layer, whose channels come last.

    Returns:
        ``z`` of ``y``'s shape and dtype. For half-precision ``y`` the collision is computed in float32 and rounded
        once.

    Example:
        >>> collide(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0]]), torch.tensor([1.0, 1.0]), spatial_dims=0)
        tensor([[4., 1.]])
    """
    if y.size(-spatial_dims - 1) == 0:  # also what torch's convolution gives for an input without channels
        # Each vector's sum is added, so that it gets a gradient of zeros, as a weight does.
        return y + sum(v.sum() for v in (collision, inner_bias, gain) if v is not None)
    z = _collided(dense(y), s, (collision, _offset(inner_bias, bias), gain), 1.0, spatial_dims)
    return z.to_mkldnn() if y.is_mkldnn else z  # oneDNN's layout


def collide_(
    y: Tensor, s: Tensor, collision: Tensor, factor: float, offset: Tensor | None, gain: Tensor | None
) -> Tensor:
    """Overwrites y with ``y + gain * relu(y - factor * collision * s + offset)``, in one pass where a kernel serves.

    ``y`` is ``(N, C, *L)``, dense and contiguous or channels last; ``s`` is ``(N, groups, *L)``, vectors ``(C,)``.
    """
    if native.serves(y, sums=s):
        return cast(Tensor, native.operator("collide_")(y, s, collision, factor, offset, gain))
    if (z := gpu.run("collide_", y, s, collision, factor, offset, gain)) is not None:
        return cast(Tensor, z)
    return _collided(y, s, (collision, offset, gain), factor, y.dim() - 2, own=True)


def collide_backward(
    dz: Tensor,
    z: Tensor,
    z_is_y: bool,
    s: Tensor,
    collision: Tensor,
    offset: Tensor | None,
    gain: Tensor | None,
    factor: float,
    followed: bool = False,
) -> Gradients:
    """Gradients of the arguments of :func:`collide_`, from its result z (or from y, with ``z_is_y``) and dz.

    Let u = y - w' s + offset, and t = z - w' s + offset. Where the branch is silent (u <= 0), z is y and t is u. Where
    it fires, t is (1 + gain) u, which has the sign of u. So t tells where the branch fires.
    ``followed``: autograd (for second derivatives) or vmap follows this call, so it uses torch's operators alone.
    """
    if not followed:
        if native.serves(z, dz, s):
            operator = native.operator("collide_backward")
            dy, ds, dv, do, dg = operator(dz, z, z_is_y, s, collision, factor, offset, gain)
            return dy, ds, dv, None if offset is None else do, None if gain is None else dg
        if (found := gpu.run("collide_backward", z, s, dz, z_is_y, collision, factor, offset, gain)) is not None:
            return cast(Gradients, found)
        dz = dz if dz.stride() == z.stride() else torch.empty_like(z, dtype=dz.dtype).copy_(dz)
    work = torch.promote_types(z.dtype, s.dtype)  # single precision for half
    collision, offset, gain = (None if v is None else v.to(work) for v in (collision, offset, gain))  # type: ignore[assignment]
    nd, dz, over = z.dim() - 2, dz.to(work), [0, *range(2, z.dim())]
    t = plus_sums(z, collision, s, nd, -factor)
    if offset is not None:
        t = t + column(offset, nd)
    m = torch.ops.aten.threshold_backward.default(dz, t, 0)  # the branch's gradient, without the gain
    ds, dv = autograd.weighted_sums(m, s, (collision if gain is None else collision * gain) * -factor)
    do, dg = None if offset is None else m.sum(over), None
    if gain is not None:
        dg = (m * t).sum(over) if z_is_y else (m * t).sum(over) / (1 + gain)
        m, dv, do = m * column(gain, nd), dv * gain, None if do is None else do * gain
    return (dz + m).to(z.dtype), ds, dv * -factor, do, dg


def deployed(v: Tensor, s: Tensor | None, spatial_dims: int, post: Post) -> Tensor:
    """``sign * prelu(v) + collision * s + offset``, of ``v`` ``(N, C, *L)`` and the means ``s`` ``(N, groups, *L)``.

    ``v`` is the convolution's own output and is used nowhere else, so it may be overwritten. In half precision the
    result is rounded once.
    """
    slope, uniform_slope, sign, collision, offset = post
    own = spatial_dims > 0 and v.dim() == spatial_dims + 2 and v.numel() > 0 and _may_overwrite(v)
    half = v.dtype in _HALF
    r = v.float() if own and half else dense(v)
    if slope is None:
        r = F.leaky_relu(r, uniform_slope, inplace=own)
    else:  # F.prelu's channels are dimension 1
        batch = r.unsqueeze(0) if r.dim() == spatial_dims + 1 else r
        batch = batch if spatial_dims > 0 else r.reshape(-1, r.size(-1))
        r = F.prelu(batch, slope.to(r.dtype)).view(r.shape)
    if half:
        r = r.float()
    if sign is not None:
        r = torch.mul(r, column(sign, spatial_dims), out=r if own else None)
    if offset is not None:
        r = torch.add(r, column(offset, spatial_dims), out=r if own else None)
    if collision is not None and s is not None:
        r = plus_sums(r, collision, s, spatial_dims, own=own)
    r = r.to(v.dtype) if half else r
    return r.to_mkldnn() if v.is_mkldnn else r


# -- by which path a unit runs ---------------------------------------------------------------------------------------


def _may_overwrite(t: Tensor) -> bool:
    """Whether this is plain eager execution that no gradient follows."""
    return _ENABLED and autograd.plain_mode(t) and not autograd.differentiable(t)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None, collision: Tensor, *others: Tensor | None) -> bool:
    """Whether the unit may run in place, and can be an autograd function that keeps neither y nor the branch."""
    if not _ENABLED or not autograd.plain_mode(x, weight):  # first: what is traced can't be asked for more
        return False
    if not x.is_floating_point() or x.dim() != weight.dim() or x.numel() == 0 or weight.numel() == 0:
        return False
    if not autograd.differentiable(x, weight, bias, collision, *others):
        return True
    # Backward may have to compute y again, which it can only do if the convolution is differentiated too.
    if not autograd.differentiable(x, weight, bias) or x.dtype not in _TYPES:
        return False
    if (gain := others[-1]) is None or gpu.serves(x):
        return True
    # On other devices, reading the gain would force a device sync.
    return x.device.type == "cpu" and bool((gain > _LEAST_GAIN).all())


def convolution(
    kernel: Sequence[int], conv: Conv, vectors: Vectors, scale: float = 1.0, unpadded: tuple[Any, ...] | None = None
) -> Tensor:
    """Computes an IC convolution by the fastest path that serves; w' is ``scale`` times the first of ``vectors``.

    ``kernel`` are the window's sizes, which a trace can't take from the weight. ``conv`` are the arguments of torch's
    functional convolution, and so are the errors. ``unpadded``, for an ``x`` that was padded other than with zeros:
    what it was before, the padding in pairs, and its mode.
    """
    (x, weight, bias, stride, padding, dilation, groups), (collision, inner_bias, gain) = conv, vectors
    kernel, nd = list(kernel), len(kernel)
    convolve = autograd.CONVOLUTIONS[nd]
    if not _serves(x, weight, bias, *vectors):
        source, pairs, mode = unpadded or (x, receptive_field.padding_pairs(padding, kernel, dilation), "zeros")
        y = convolve(*conv)
        s = receptive_field_sum(source, kernel, stride, pairs, dilation, groups, mode, scale)
        return collide(y, s, collision, inner_bias, bias, gain, nd)
    stride, dilation = receptive_field.per_dimension(stride, nd), receptive_field.per_dimension(dilation, nd)
    if padding == "same" and stride != [1] * nd:
        convolve(*conv)  # which says why not
    pairs = receptive_field.padding_pairs(padding, kernel, dilation)
    if pairs[::2] != pairs[1::2]:
        x, pairs = F.pad(x, pairs), [0] * len(pairs)
    window, offset = (stride, pairs[::-2], dilation, groups), _offset(inner_bias, bias)
    trains = autograd.differentiable(x, weight, bias, collision, offset, gain)
    x, weight, bias = autograd.lowered(x, weight, bias)
    with autograd.without_autocast(x.device.type):
        compiled = native.serves(x, weight)
        if compiled and not trains:
            return cast(Tensor, native.operator("ic_conv")(x, weight, bias, *window, collision, scale, offset, gain))
        y, s = autograd.ConvAndSum.apply(x, weight, bias, *window, compiled)
        if not compiled:
            s, scale = receptive_field.window_mean(s, kernel, stride, pairs, dilation), scale * math.prod(kernel)
        if not trains:
            return collide_(y, s, collision, scale, offset, gain)
        if gain is not None and gpu.serves(x):  # any gain: the branch can't be read off z, and y is kept
            return _collided(y, s, (collision, offset, gain), scale, nd)
        z: Tensor = autograd.Collide.apply(collide_, collide_backward, y, s, collision, offset, gain, scale)
        return z


def deployed_convolution(
    kernel: Sequence[int], conv: Conv, post: Post, unpadded: tuple[Any, ...] | None = None
) -> Tensor:
    """Computes a deployed IC convolution; the arguments are those of :func:`convolution` and :func:`deployed`."""
    x, weight, _, stride, padding, dilation, groups = conv
    given = unpadded is None and not isinstance(padding, str)
    if given and _may_overwrite(x) and native.serves(x, weight) and x.dim() == weight.dim() and x.numel() > 0:
        return cast(Tensor, native.operator("deployed_conv")(*conv, *post))
    s, convolve = None, autograd.CONVOLUTIONS[len(kernel)]
    if post[3] is not None:  # before the convolution: it leaves the input in the cache
        try:
            source, pairs, mode = unpadded or (x, receptive_field.padding_pairs(padding, kernel, dilation), "zeros")
            s = receptive_field.receptive_field_mean(source, (list(kernel), stride, pairs, dilation), groups, mode)
        except Exception:
            convolve(*conv)  # torch's own message
            raise
    return deployed(convolve(*conv), s, len(kernel), post)


# They decide by dtypes and sizes, which torch.fx cannot trace through; as leaves they are recorded whole.
for _leaf in ("collide", "convolution", "deployed", "deployed_convolution", "linear_sum", "receptive_field_sum"):
    torch.fx.wrap(_leaf)


# -- a unit as a function --------------------------------------------------------------------------------------------


def _ic_conv(nd: int, shape: str) -> Callable[..., Tensor]:
    def ic_conv(
        x: Tensor,
        weight: Tensor,
        collision_weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        *,
        inner_bias: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> Tensor:
        """Computes an IC convolution over ``x`` of shape ``(N, C_in, H, W)`` (arXiv 2102.03495).

        Takes the arguments of :func:`torch.nn.functional.conv2d` and the unit's own, each of shape ``(C_out,)``:
        ``collision_weight`` (the paper's w'), ``inner_bias`` (b1) and ``gain`` (absent means 1).
        Returns ``(N, C_out, *L_out)``. Raises ValueError for an unknown padding string.

        Example:
            >>> import icnets.functional, torch
            >>> x, weight = torch.ones(1, 2, 5, 5), torch.ones(4, 2, 3, 3)
            >>> tuple(icnets.functional.ic_conv2d(x, weight, collision_weight=torch.zeros(4)).shape)
            (1, 4, 3, 3)
        """
        conv = (x, weight, bias, stride, padding, dilation, groups)
        if weight.dim() != nd + 2:
            autograd.CONVOLUTIONS[nd](*conv)  # which says so
        return convolution(weight.shape[2:], conv, (collision_weight, inner_bias, gain))

    ic_conv.__name__ = ic_conv.__qualname__ = f"ic_conv{nd}d"
    for of_two, own in (("conv2d", f"conv{nd}d"), ("H, W", shape), (", 5, 5", ", 5" * nd), (", 3, 3", ", 3" * nd)):
        ic_conv.__doc__ = str(ic_conv.__doc__).replace(of_two, own)
    return ic_conv


ic_conv1d, ic_conv2d, ic_conv3d = _ic_conv(1, "L"), _ic_conv(2, "H, W"), _ic_conv(3, "D, H, W")


def ic_linear(
    x: Tensor,
    weight: Tensor,
    collision_weight: Tensor,
    bias: Tensor | None = None,
    *,
    inner_bias: Tensor | None = None,
    gain: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Computes the IC neuron: a linear layer with a collision (paper: arXiv 2011.11271).

    ``x`` is ``(*, C_in)``, ``weight`` is ``(C_out, C_in)``; the vectors are those of :func:`collide`, with w' as
    ``scale * collision_weight``. Returns ``(*, C_out)``.

    Example:
        >>> ic_linear(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1))
        tensor([[4.]])
    """
    y = F.linear(x, weight, bias)
    return collide(y, linear_sum(x, scale), collision_weight, inner_bias, bias, gain, 0)
