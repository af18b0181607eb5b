"""What a layer convolves, and with what: observed in a call of its forward pass, whatever its class is."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from icnets.support.text import first_line
from icnets.unit.receptive_field import padding_pairs, per_dimension

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRIAL_SIZE = 8  # places, per dimension, beyond the window's own


class Record(TorchFunctionMode):
    """Notes the arguments of the calls of torch's convolutions, and their results.

    Given a trial's input, it computes no convolution, and notes whether anything else looks at that input.
    """

    def __init__(self, trial: Tensor | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], Tensor]] = []
        self.trial, self.read = trial, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in CONVOLUTIONS:
            if self.trial is not None and not self.read:
                self.read = any(leaf is self.trial for leaf in tree_leaves((args, kwargs)))
            return func(*args, **kwargs)
        call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
        call |= kwargs
        if self.trial is None:
            result = func(**call)
        else:
            shape = func(**tree_map_only(Tensor, lambda t: t.to("meta"), call)).shape
            result = self.trial.new_zeros(()).expand(shape)
        self.calls.append((call, result))
        return result


def twin_of(module: Any, cls: Any) -> Any:
    """A copy of ``module`` that is a ``cls``."""
    twin = cls.__new__(cls)
    # Hooks aren't called here, and may hold the whole network.
    twin.__dict__.update({k: v if "hook" in k else copy.deepcopy(v) for k, v in module.__dict__.items()})
    return twin


def trial_input(module: Any) -> Tensor:
    """Noise ``(2, C_in, *L)`` of the weight's type, a little larger than a window."""
    dilation = per_dimension(module.dilation, len(module.kernel_size))
    shape = [d * (k - 1) + _TRIAL_SIZE for k, d in zip(module.kernel_size, dilation, strict=True)]
    noise = torch.randn(2, module.in_channels, *shape, device="cpu")  # whatever the default device is
    return noise.to(module.weight.device, module.weight.dtype)


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
    call: dict[str, Any] | None = None
    padded: bool = False


def convolution_of(layer: Any, forward: Callable[..., Any]) -> Convolution | str:
    """What ``layer``, a convolution, convolves with in ``forward``, its class's own; or why that isn't one thing.

    It is observed on a copy, for inputs of two sizes: what isn't computed from the input is the same for both.
    """
    calls: list[dict[str, Any]] = []
    kind, x = getattr(layer, "basic_type", type(layer)).__name__, None
    for _ in range(2):
        twin = twin_of(layer, type(layer))
        with torch.random.fork_rng(devices=[]):
            x = trial_input(layer) if x is None else F.pad(x[:1], [0, 3] * len(layer.kernel_size))
        if calls and "bias" in twin._parameters and twin.bias is None:  # would it be used if it were there?
            twin.bias = nn.Parameter(twin.weight.new_zeros(twin.out_channels), requires_grad=False)
        try:
            with torch.no_grad(), Record(x) as record:
                result = forward(twin, x)
        except Exception as error:  # whatever someone else's code raises
            return f"{kind} fails on a trial input: {first_line(error)}"
        if len(record.calls) != 1 or record.calls[0][1] is not result:
            times = len(record.calls)
            made = "changes the convolution's output" if times == 1 else f"calls torch's convolution {times} times"
            return f"{kind} {made}"
        calls.append(record.calls[0][0])
    first, second = calls
    weight, bias = first["weight"], first.get("bias")
    if weight.shape != layer.weight.shape:
        return f"{kind} convolves with a weight of shape {tuple(weight.shape)}"
    absent = weight.new_zeros(layer.out_channels)
    biases = [absent if b is None else b for b in (bias, second.get("bias"))]
    if not torch.equal(weight, second["weight"]) or not torch.equal(*biases):
        return f"{kind} convolves with another weight or bias at each call"
    own = all(second.get(n) is twin._parameters.get(n, absent) for n in ("weight", "bias"))
    if own:
        weight, bias = layer.weight, layer.bias
    kernel = list(weight.shape[2:])
    step, rate = (per_dimension(second.get(n, 1), len(kernel)) for n in ("stride", "dilation"))
    pairs = padding_pairs(second.get("padding", 0), kernel, rate)
    call: dict[str, Any] = {"stride": tuple(step), "dilation": tuple(rate), "groups": second.get("groups", 1)}
    # As torch's layers note what isn't symmetric.
    call |= {"padding": tuple(pairs[::-2]) if pairs[::2] == pairs[1::2] else "same", "padding_mode": "zeros"}
    call["_reversed_padding_repeated_twice"] = pairs
    return Convolution(weight, bias, own, call, record.read or second["input"] is not x)
