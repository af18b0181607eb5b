"""TorchScript of the units whose forward pass is a subclass's own (ours; see :mod:`icnets.subclasses`).

TorchScript compiles the source of a forward pass and can't take the convolution in it for another. But it can compile
that source as it is, which gives the convolution's output, and a collision behind it. The receptive fields are of what
the pass convolves, which it may have padded: a function of the input alone, recorded by torch.jit.trace.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets import functional
from icnets.receptive_field import receptive_field_sum

__all__ = ["ATTRIBUTES", "methods", "prepare_"]

# What TorchScript reads of a unit while it compiles it; no part of the unit, so copies and pickles lack them.
ATTRIBUTES = ("scripted_input", "scripted_windows")


def scripted_sum(self: Any, input: Tensor) -> Tensor:
    """The sums over the receptive fields of what the unit convolves."""
    kernel, stride, pairs, dilation, groups, mode = self.scripted_windows
    x = self.scripted_input(input)
    return receptive_field_sum(x, kernel, stride, pairs, dilation, groups, mode, self.sum_scale)


# Two, because TorchScript takes the vectors by their names.
def _forward(self: Any, input: Tensor) -> Tensor:
    """A scripted unit's forward pass: ``own_forward`` in Python, ``basic_forward`` and a collision in TorchScript."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        y, s, nd = self.basic_forward(input), self.scripted_sum(input), len(self.kernel_size)
        return functional.collide(y, s, self.collision, self.inner_bias, self.bias, self.gain, nd)
    else:
        return self.own_forward(input)


def _renamed_forward(self: Any, input: Tensor) -> Tensor:
    """The same where the layer has something of its own that is called as one of the vectors."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        y, s, nd = self.basic_forward(input), self.scripted_sum(input), len(self.kernel_size)
        return functional.collide(y, s, self.ic_collision, self.ic_inner_bias, self.bias, self.ic_gain, nd)
    else:
        return self.own_forward(input)


def methods(basic: FunctionType, python: Callable[..., Any], renamed: bool) -> dict[str, Any]:
    """Methods of a scripted unit's class.

    Args:
        basic: the forward pass of the former class.
        python: the unit's, which Python calls; TorchScript doesn't look at it.
        renamed: whether the vectors are called ``ic_collision`` and so on.
    """
    parts = (basic.__code__, basic.__globals__, "basic_forward", basic.__defaults__, basic.__closure__)
    own = FunctionType(*parts)  # TorchScript goes by a function's name, and there is a forward already
    own.__annotations__ = basic.__annotations__
    forward = _renamed_forward if renamed else _forward
    members = {"forward": forward, "own_forward": python, "basic_forward": own, "scripted_sum": scripted_sum}
    # Else TorchScript would take the types of a unit's vectors for those of the layer's own, which are called the same.
    return members | {"__annotations__": {"sum_scale": float}} if renamed else members


# By their graphs. Units of one structure and one function are one type to TorchScript, which keeps each type for good.
_traced: dict[str, Any] = {}


def _shared(traced: Any) -> Any:
    """A function recorded before that is the same, or else ``traced``."""
    graph = traced.graph
    for simplify in ("constant_propagation", "dce", "erase_shape_information"):  # the weight goes, its size stays
        getattr(torch._C, f"_jit_pass_{simplify}")(graph)
    return traced if "<Tensor>" in str(graph) else _traced.setdefault(str(graph), traced)


def prepare_(unit: nn.Module, convolved: Callable[[Tensor], tuple[Any, ...]], x: Tensor) -> None:
    """Gives ``unit`` its :data:`ATTRIBUTES`.

    Args:
        unit: whose class will have one of the forward passes above.
        convolved: what the unit convolves for an input, and its windows; see :func:`icnets.subclasses.convolved`.
            No parameter that needs a gradient may have a part in it.
        x: an input ``(N, C, *L)``.

    Raises:
        NotImplementedError: what is convolved depends on the input's size in a way that no trace can follow.
    """
    nd = x.dim() - 2
    others = [F.pad(x, [0, more] * nd) for more in (1, 5)]
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a trace may miss: it is looked at below
            traced = torch.jit.trace(lambda x: convolved(x)[0], x, check_trace=False)  # type: ignore[attr-defined]
            traced = _shared(traced)
            follows = all(torch.equal(traced(other), convolved(other)[0]) for other in others)
    except (RuntimeError, SystemError, TypeError):  # arithmetic of Python's on sizes, which are tensors to a trace
        follows = False
    if not follows:
        raise NotImplementedError(
            f"{type(unit).__name__} can't be scripted: what it convolves depends on its input's size by Python's own "
            "arithmetic; use torch.compile or torch.export"
        )
    unit.__dict__.update(zip(ATTRIBUTES, (traced, convolved(x)[1:]), strict=True))
