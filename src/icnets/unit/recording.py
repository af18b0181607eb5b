"""What a layer convolves, and with what: observed in a call of its forward pass, whatever its class is."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from icnets.support.text import first_line
from icnets.unit.receptive_field import padding_pairs, per_dimension

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_ARGUMENTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a call of torch's convolution, by name and in torch's order."""
    return _ARGUMENTS | dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {})


def windows(call: dict[str, Any], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding in pairs, dilation and groups of a call of torch's convolution, whose window is ``kernel``."""
    stride, dilation = (per_dimension(call[name], len(kernel)) for name in ("stride", "dilation"))
    return stride, padding_pairs(call["padding"], kernel, dilation), dilation, call["groups"]


class Record(TorchFunctionMode):
    """Notes the calls of torch's convolutions, each as its arguments by name and a stand-in for its result.

    It computes no convolution, and notes whether anything else looks at the trial's input.
    """

    def __init__(self, trial: Tensor) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], Tensor]] = []
        self.trial, self.read = trial, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in CONVOLUTIONS:
            self.read |= any(leaf is self.trial for leaf in tree_leaves((args, kwargs)))
            return func(*args, **(kwargs or {}))
        call = arguments(args, kwargs)
        shape = func(**tree_map_only(Tensor, lambda t: t.to("meta"), call)).shape
        result = self.trial.new_zeros(()).expand(shape)
        self.calls.append((call, result))
        return result


class Trial(NamedTuple):
    """The one call of torch's convolution that a copy of a layer makes.

    ``padded``: whether the copy's forward pass looks at its input, to pad it as a rule, before it convolves.
    """

    twin: Any
    call: dict[str, Any]
    padded: bool


def try_forward(
    layer: Any, forward: Callable[..., Any], batch: int = 2, more: int = 8, random: bool = False
) -> Trial | str:
    """Calls ``forward``, of the class of ``layer``, for a copy of it; or what it does that isn't one convolution.

    Its input is noise ``(batch, C_in, *L)``, ``more`` places per dimension beyond the window's own. With ``random`` the
    copy's weight is noise too. A bias that is absent is there in the copy, of zeros: it shows whether it would be used.
    """
    kind: Any = type(layer)
    twin = kind.__new__(kind)
    # Hooks aren't called here, and may hold the whole network.
    twin.__dict__.update({k: v if "hook" in k else copy.deepcopy(v) for k, v in layer.__dict__.items()})
    dilation = per_dimension(layer.dilation, len(layer.kernel_size))
    size = [d * (k - 1) + more for k, d in zip(layer.kernel_size, dilation, strict=True)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x = torch.randn(batch, layer.in_channels, *size, device="cpu")  # whatever the default device is
        x = x.to(layer.weight.device, layer.weight.dtype)
        if random and "weight" in twin._parameters:
            twin.weight.normal_()
        if "bias" in twin._parameters and twin.bias is None:
            twin.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
        try:
            with Record(x) as record:
                result = forward(twin, x)
        except Exception as error:  # whatever someone else's code raises
            return f"fails on a trial input: {first_line(error)}"
    if len(record.calls) != 1:
        return f"calls torch's convolution {len(record.calls)} times"
    call, output = record.calls[0]
    if call["weight"].shape != layer.weight.shape:
        return f"convolves with a weight of shape {tuple(call['weight'].shape)}"
    if output is not result:
        return "changes the convolution's output"
    return Trial(twin, call, record.read or call["input"] is not x)


@dataclass(frozen=True)
class Convolution:
    """The one convolution that a layer makes, whatever its input is.

    Attributes:
        weight: what it convolves with.
        bias: what it adds.
        own: whether these are the layer's own Parameters, and not computed.
        call: stride, padding, dilation and groups, where a forward pass of its own makes them; else empty.
        padded: whether that forward pass looks at its input, to pad it as a rule, before it convolves.
    """

    weight: Tensor
    bias: Tensor | None
    own: bool = True
    call: dict[str, Any] = field(default_factory=dict)
    padded: bool = False


def convolution_of(layer: Any, forward: Callable[..., Any]) -> Convolution | str:
    """What ``layer``, a convolution, convolves with in ``forward``, its class's own; or why that isn't one thing.

    It is observed on a copy, for inputs of two sizes: what isn't computed from the input is the same for both.
    """
    first, second = try_forward(layer, forward), try_forward(layer, forward, batch=1, more=11)
    kind = getattr(layer, "basic_type", type(layer)).__name__
    if isinstance(first, str) or isinstance(second, str):
        return f"{kind} {first if isinstance(first, str) else second}"
    values = [(first.call[name], second.call[name]) for name in ("weight", "bias")]
    if any(a is not b and (a is None or b is None or not torch.equal(a, b)) for a, b in values):
        return f"{kind} convolves with another weight or bias at each call"
    own = all(second.call[name] is second.twin._parameters.get(name, layer) for name in ("weight", "bias"))
    weight, bias = (layer.weight, layer.bias) if own else (first.call["weight"], first.call["bias"])
    stride, pairs, dilation, groups = windows(second.call, layer.kernel_size)
    call: dict[str, Any] = {"stride": tuple(stride), "dilation": tuple(dilation), "groups": groups}
    # As torch's layers note what isn't symmetric.
    call |= {"padding": tuple(pairs[::-2]) if pairs[::2] == pairs[1::2] else "same", "padding_mode": "zeros"}
    call["_reversed_padding_repeated_twice"] = pairs
    return Convolution(weight, bias, own, call, second.padded)
