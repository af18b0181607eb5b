"""Calibration: where w' and b1 must start for a trained network to keep nearly its function (ours).

Behind a ReLU the receptive-field sum s is not negative, and the branch ``relu(y - w' s)`` fires where y/s > w': w' is
a high quantile of y/s, per channel. Where s can be negative no w' does that, and b1 = -(a high quantile of y) does.
The gain of the excess over a high quantile is small, so the network's function hardly moves, and every new parameter
still gets a gradient from the places where the branch fires.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from icnets import receptive_field
from icnets.hooks import removed_after
from icnets.subclasses import convolved

__all__ = ["calibrated"]

_SAMPLES = 4096  # places kept per layer and batch: of these, 1 % are 41, known to about a sixth


class _Record:
    """Samples of one layer's y (without bias) and s at common places, for every output channel."""

    def __init__(self) -> None:
        self.y: list[Tensor] = []
        self.s: list[Tensor] = []
        self.nonnegative = True

    def add(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        y, s, nd = _sums(module, x, output)
        self.nonnegative &= bool((x >= 0).all())
        y = y.movedim(-nd - 1, -1).flatten(0, -2)
        s = s.movedim(-nd - 1, -1).flatten(0, -2)
        if y.shape[0] > _SAMPLES:
            picked = torch.linspace(0, y.shape[0] - 1, _SAMPLES, device=y.device).round().long()
            y, s = y[picked], s[picked]
        self.y.append(y)
        self.s.append(s.repeat_interleave(y.shape[1] // s.shape[1], dim=1))

    def start(self, rate: float) -> dict[str, Tensor]:
        y, s = torch.cat(self.y), torch.cat(self.s)
        if not self.nonnegative:
            return {"inner_bias": -torch.quantile(y, 1 - rate, dim=0)}
        # Where nothing arrives (s = 0) nothing fires, whatever w' is: those places rank last.
        ratio = torch.where(s > 0, y / s.clamp_min(torch.finfo(s.dtype).tiny), -torch.inf)
        w = torch.quantile(ratio, 1 - rate, dim=0, interpolation="higher")
        return {"collision_weight": torch.where(w.isfinite(), w, ratio.new_zeros(()))}


def _sums(module: Any, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor, int]:
    if isinstance(module, nn.Linear):
        y = output if module.bias is None else output - module.bias
        return y.double(), receptive_field.linear_sum(x.double()), 0
    nd = len(module.kernel_size)
    bias = 0 if module.bias is None else module.bias.view([-1] + [1] * nd)
    if module.transposed:
        kernel, stride, padding = list(module.kernel_size), list(module.stride), list(module.padding)
        field = (kernel, stride, padding, list(module.dilation), module.groups, list(output.shape[-nd:]))
        s = receptive_field.transposed_sum(x.double(), *field)
    else:
        x, *window = convolved(module, x)
        s = receptive_field.receptive_field_sum(x.double(), *window)
    return (output - bias).double(), s, nd


def _input(batch: Any, like: Tensor | None) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise ValueError(
            f"a batch of calibration_data is a {type(batch).__name__}; it must be an input tensor, "
            "or a tuple or list that begins with one"
        )
    return x if like is None else x.to(like.device)


@torch.no_grad()
def calibrated(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], rate: float, inner_bias: bool
) -> dict[str, dict[str, Tensor]]:
    """Starting values for ``layers`` (still basic) with which the branch fires in a fraction ``rate`` of places.

    The model is run in eval mode without gradient, and its mode put back.

    Args:
        model: the basic network.
        layers: the layers to calibrate, by name.
        batches: input tensors, or tuples or lists that begin with one.
        rate: wanted fraction, between 0 and 1.
        inner_bias: whether the units will have b1.

    Returns:
        For each name either ``collision_weight`` (w' in the paper's units) or ``inner_bias``, ``(C_out,)``.

    Raises:
        ValueError: no batches; a layer that they never reach; a layer with negative inputs but without b1.
    """
    records = {name: _Record() for name in layers}
    modes = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(lambda m, args, out, r=records[name]: r.add(m, args[0], out))
        for name, module in layers.items()
    ]
    try:
        with removed_after(handles):
            model.eval()
            for batch in batches:
                model(_input(batch, next(model.parameters(), None)))
    finally:
        for module, training in modes.items():
            module.training = training
    if silent := [name for name, record in records.items() if not record.y]:
        raise ValueError(
            f"calibration_data reached {len(records) - len(silent)} of {len(records)} layers; never {silent[0]!r}: "
            "pass at least one batch, and leave layers that don't run in eval mode out by filter_fn"
        )
    negative = [name for name, record in records.items() if not record.nonnegative]
    if negative and not inner_bias:
        raise ValueError(
            f"layer {negative[0]!r} has negative inputs, where only b1 can calibrate, and inner_bias is False; "
            "set inner_bias=True, or leave the layer out by filter_fn"
        )
    return {name: record.start(rate) for name, record in records.items()}
