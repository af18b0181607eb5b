"""The output of a unit that hasn't been computed yet, because what reads it may do that in its own pass (ours).

In training, on GPUs, with channels last, a unit gives a :class:`Deferred` tensor. A batch norm that reads it takes the
unit's collision into its passes, and a shortcut and a ReLU that follow go the same way: the kernels of
:mod:`icnets.kernels.gpu.norm`. Whatever else reads it gets the plain tensor, computed then; so no network needs to be
changed. ``ICNETS_DEFER=0`` leaves it off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from icnets.kernels.gpu import SUMS
from icnets.kernels.gpu.collide import collide_, collide_backward
from icnets.kernels.gpu.layout import Layout
from icnets.kernels.gpu.norm import Norm, Unit, backward, by_formula, forward, statistics

__all__ = ["Deferred", "defer"]

_ENABLED = os.environ.get("ICNETS_DEFER", "1") != "0"
_READ_PLAINLY: Any = WeakIdKeyDictionary()  # weights of units whose output something else than a batch norm reads


def defer(
    y: Tensor,
    s: Tensor,
    layout: Layout,
    weight: Tensor,
    collision: Tensor,
    factor: float,
    offset: Tensor | None,
    gain: Tensor | None,
    always: bool,
) -> Tensor | None:
    """The unit's output, deferred; None where it isn't worth it and needn't be ``always``.

    ``weight`` is that of the convolution which y comes from.
    """
    if not always and (not layout.last or not _ENABLED or weight in _READ_PLAINLY):
        return None
    vectors, rest = (y, s, collision, offset, gain), (None,) * 5
    pending = _Pending(Unit(*vectors, factor, layout), weight)
    return cast(Tensor, _Chain.apply(*vectors, *rest, (factor, layout), None, False, pending))


class _Pending:
    """What a deferred tensor stands for: ``norm(z) + shortcut``, as far as it has come."""

    def __init__(
        self, unit: Unit, weight: Tensor | None = None, norm: Norm | None = None, shortcut: Tensor | None = None
    ) -> None:
        self.unit, self.weight, self.norm, self.shortcut = unit, weight, norm, shortcut
        self.plain: Tensor | None = None  # what it has become: its contents, or what an operation in place made of it
        self.replaced = False  # whether it is the latter
        self.read = False  # whether a gradient came by way of its contents

    def check(self) -> None:
        """Raises RuntimeError if a gradient came by a way that misses what was done in place."""
        overwritten = self.plain is not None and self.plain._version > 0 and not self.read
        if self.replaced or overwritten:
            raise RuntimeError(
                "the output of an IC unit, or of the norm behind it, was overwritten in place and then handed to a "
                "torch.autograd.Function, whose gradient would be wrong; use the operation's result instead, or set "
                "ICNETS_DEFER=0"
            )


class Deferred(Tensor):
    """A tensor without contents until they are asked for; a graph leads to it as to any other."""

    pending: _Pending

    @staticmethod
    def of(pending: _Pending) -> Deferred:
        """The tensor that stands for ``pending``."""
        y = pending.unit.y
        made: Deferred = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Deferred, y.shape, strides=y.stride(), dtype=y.dtype, device=y.device
        )
        made.pending = pending
        return made

    def contents(self) -> Tensor:
        """The plain tensor."""
        return cast(Tensor, _plain(self))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Deferred({self.contents()!r})"

    @classmethod
    def __torch_function__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _UNREAD:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None and (found := rule(*args, **kwargs)) is not None:
            return found
        args, kwargs = tree_map(_plain, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(lambda t: _plain(t).detach() if isinstance(t, Deferred) else t, (args, kwargs or {}))
        return func(*args, **kwargs)


# Questions that its shape and type answer.
_UNREAD = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad", "is_leaf", "grad_fn")
} | {
    Tensor.dim,
    Tensor.size,
    Tensor.stride,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.__len__,
    Tensor.is_contiguous,
}


def _plain(t: Any) -> Any:
    """A deferred tensor's contents, as a tensor that autograd follows; anything else as it is."""
    if not isinstance(t, Deferred):
        return t
    pending = t.pending
    if pending.plain is None:
        if pending.norm is None and pending.weight is not None:
            _READ_PLAINLY[pending.weight] = True
        with torch.enable_grad():
            pending.plain = _Computed.apply(t, pending)
    return _plain(pending.plain)


class _Computed(torch.autograd.Function):
    """From a deferred tensor to its contents."""

    @staticmethod
    def forward(ctx: Any, deferred: Deferred, pending: _Pending) -> Tensor:  # type: ignore[override]
        ctx.pending = pending
        unit = pending.unit
        if pending.norm is not None:
            return forward(unit, pending.norm, pending.shortcut, relu=False)[0]
        y = unit.y.detach().clone(memory_format=torch.preserve_format)
        return collide_(y, unit.s, unit.layout, unit.collision, unit.factor, unit.offset, unit.gain)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.pending.read = True
        return d, None


class _Chain(torch.autograd.Function):
    """``act(norm(z) + shortcut)`` and its sums over channels, or with a ``deferred`` a tensor that stands for it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        y: Tensor,
        s: Tensor,
        collision: Tensor,
        offset: Tensor | None,
        gain: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        shortcut: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        spec: tuple[Any, ...],
        eps: float | None,
        relu: bool,
        deferred: _Pending | None,
    ) -> Any:
        ctx.spec, ctx.eps, ctx.relu, ctx.has_shortcut = spec, eps, relu, shortcut is not None
        ctx.set_materialize_grads(False)
        ctx.pending = deferred
        out = total = None
        if deferred is None:
            assert mean is not None
            assert rstd is not None
            assert eps is not None
            unit, norm = Unit(y, s, collision, offset, gain, *spec), Norm(weight, bias, mean, rstd, eps)
            out, total = forward(unit, norm, shortcut, relu)
        # Backward needs the output only where it can't be had again from y, and then something else keeps it anyway.
        kept = out if relu and ctx.has_shortcut else None
        ctx.save_for_backward(y, s, collision, offset, gain, weight, bias, mean, rstd, kept)
        return Deferred.of(deferred) if deferred is not None else (out, total)

    @staticmethod
    def backward(ctx: Any, d: Tensor | None, extra: Tensor | None = None) -> tuple[Any, ...]:  # type: ignore[override]
        y, s, collision, offset, gain, weight, bias, mean, rstd, out = ctx.saved_tensors
        unit = Unit(y, s, collision, offset, gain, *ctx.spec)
        norm = None if mean is None else Norm(weight, bias, mean, rstd, ctx.eps)
        rest = (None,) * 6
        if d is None and extra is None:
            return (None,) * 14
        if ctx.pending is not None:
            ctx.pending.check()
        d = torch.zeros_like(y) if d is None else d
        if torch.is_grad_enabled():
            return (*_by_formula(ctx, d, extra, unit, norm, out), *rest)
        if norm is None:
            given = (collision, ctx.spec[0], offset, gain)
            return (*collide_backward(y, s, unit.layout, d, True, *given), None, None, None, *rest)
        return (*backward(d, extra, out, unit, norm, ctx.has_shortcut, ctx.relu), *rest)


def _by_formula(
    ctx: Any, d: Tensor, extra: Tensor | None, unit: Unit, norm: Norm | None, out: Tensor | None
) -> list[Tensor | None]:
    """The gradients by operators that autograd follows, for second derivatives."""
    n = by_formula(unit, norm)
    d = d if extra is None else (d + extra).to(d.dtype)
    if ctx.relu:
        d = d * ((n if out is None else out) > 0)
    given = [unit.y, unit.s, unit.collision, unit.offset, unit.gain, *([norm.weight, norm.bias] if norm else [])]
    wanted = [t for t in given if t is not None and t.requires_grad]
    found = dict(zip(map(id, wanted), torch.autograd.grad(n, wanted, d, create_graph=True), strict=True))
    gradients = [None if t is None else found.get(id(t)) for t in given]
    return [*gradients, *[None] * (7 - len(gradients)), d if ctx.has_shortcut else None]


# -- what may follow -------------------------------------------------------------------------------------------------


def _next(pending: _Pending, relu: bool, deferred: _Pending | None) -> Any:
    unit, norm = pending.unit, pending.norm
    assert norm is not None
    vectors = (unit.y, unit.s, unit.collision, unit.offset, unit.gain, norm.weight, norm.bias, pending.shortcut)
    return _Chain.apply(*vectors, norm.mean, norm.rstd, (unit.factor, unit.layout), norm.eps, relu, deferred)


def _batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    pending = input.pending if isinstance(input, Deferred) else None
    if pending is None or pending.norm is not None or pending.plain is not None or not training:
        return None
    if not pending.unit.layout.last or not _ENABLED:
        return None
    if pending.unit.layout.rows < 2 or (weight is None) != (bias is None) or not torch.is_grad_enabled():
        return None
    mean, rstd = statistics(pending.unit, running_mean, running_var, momentum, eps)
    after = _Pending(pending.unit, None, Norm(weight, bias, mean, rstd, eps))
    return _next(after, False, after)


def _shortcut(input: Any, other: Any, *, alpha: float = 1) -> Tensor | None:
    if not isinstance(input, Deferred):
        input, other = other, input
    pending = input.pending
    if pending.norm is None or pending.shortcut is not None or pending.plain is not None or alpha != 1:
        return None
    other = _plain(other)
    y = pending.unit.y
    if not isinstance(other, Tensor) or other.shape != y.shape or other.dtype != y.dtype or other.device != y.device:
        return None
    if other.stride() != y.stride() or not torch.is_grad_enabled():
        return None
    after = _Pending(pending.unit, None, pending.norm, other)
    return _next(after, False, after)


def _shortcut_(input: Any, other: Any, *, alpha: float = 1) -> Tensor | None:
    return _replaced(input, _shortcut(input, other, alpha=alpha)) if isinstance(input, Deferred) else None


def _relu(input: Any, inplace: bool = False) -> Tensor | None:
    pending = input.pending
    if pending.norm is None or pending.plain is not None or not torch.is_grad_enabled():
        return None
    out, total = _next(pending, True, None)
    if total is not None:
        out.__dict__[SUMS] = (total, out._version)
    return _replaced(input, out) if inplace else out


def _relu_(input: Any) -> Tensor | None:
    return _relu(input, True)


def _replaced(input: Deferred, result: Tensor | None) -> Tensor | None:
    """The result of an operation in place: whoever else holds the tensor sees it too."""
    if result is not None:
        input.pending.plain, input.pending.replaced = result, True
    return result


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    torch.add: _shortcut,
    Tensor.add: _shortcut,
    Tensor.__add__: _shortcut,
    Tensor.__radd__: _shortcut,
    Tensor.add_: _shortcut_,
    Tensor.__iadd__: _shortcut_,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
}
