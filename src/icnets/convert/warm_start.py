"""Calibration: where w' and b1 must start for the branch to fire in a given fraction of places, as in the paper's form.

Behind a ReLU the receptive-field sum s is not negative, and ``relu(y - w' s)`` fires where y/s > w', so w' is a high
quantile of y/s, per channel, on a few batches; where s can be negative no w' does that, and b1 = -(a high quantile of
y) does. This changes what a trained network computes: a rare branch changes little on data like those it was
calibrated on, and many times as much on others, because it lives on the tails of the distributions.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from icnets.support.hooks import undisturbed, watched
from icnets.unit import receptive_field
from icnets.unit.subclasses import convolved

_PLACES = 4096  # kept per layer and call: of these, 1 % are 41, known to about a sixth
_REMEDY = 'use warm_start="gain", which keeps the function exactly and needs no data'

Start = dict[str, Tensor]


class _Record:
    """Samples of one layer's y (without bias) and s at common places, for every output channel."""

    def __init__(self) -> None:
        self.y: list[Tensor] = []
        self.s: list[Tensor] = []
        self.nonnegative = self.finite = True

    def add(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        y, s, nd = _sums(module, x, output)
        self.finite &= bool(y.isfinite().all() and s.isfinite().all())
        self.nonnegative &= bool((x >= 0).all())
        y, s = (t.movedim(-nd - 1, -1).flatten(0, -2) for t in (y, s))
        if len(y) > _PLACES:
            picked = torch.linspace(0, len(y) - 1, _PLACES, device=y.device).round().long()
            y, s = y[picked], s[picked]
        self.y.append(_wide(y))
        self.s.append(s)

    def start(self, rate: float) -> Start:
        y, s = torch.cat(self.y).double(), torch.cat(self.s).double()
        if not self.nonnegative:
            return {"inner_bias": -_exceeded(y, rate)}
        s = s.repeat_interleave(y.shape[1] // s.shape[1], dim=1)
        # Where nothing arrives (s = 0) nothing fires, whatever w' is: those places rank last.
        ratio = torch.where(s > 0, y / s.clamp_min(torch.finfo(s.dtype).tiny), -torch.inf)
        w = _exceeded(ratio, rate)
        return {"collision_weight": torch.where(w.isfinite(), w, ratio.new_zeros(()))}


def _exceeded(values: Tensor, rate: float) -> Tensor:
    """For each column the value that a fraction ``rate`` of its rows exceed, and at least one of them."""
    above = max(1, round(rate * len(values)))
    return values.kthvalue(max(1, len(values) - above), dim=0).values


def _wide(t: Tensor) -> Tensor:
    """``t`` in float32 if it is in half precision, in which sums may overflow."""
    return t.float() if t.is_floating_point() and t.dtype.itemsize < 4 else t


def _sums(module: Any, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor, int]:
    """y without bias, s for each group of channels, and the number of spatial dimensions."""
    nd = 0 if isinstance(module, nn.Linear) else len(module.kernel_size)
    if nd == 0:
        s = receptive_field.linear_sum(_wide(x))
    elif module.transposed:
        kernel, stride, padding = list(module.kernel_size), list(module.stride), list(module.padding)
        field = (kernel, stride, padding, list(module.dilation), module.groups, list(output.shape[-nd:]))
        s = receptive_field.transposed_sum(_wide(x), *field)
    else:
        x, *window = convolved(module, x)
        s = receptive_field.receptive_field_sum(_wide(x), *window)
    bias = 0 if module.bias is None else module.bias.view([-1] + [1] * nd)
    return output - bias, s, nd  # a copy of the output, which the network may change in place


def _inputs(batches: Iterable[Any], like: Tensor | None) -> Iterator[Tensor]:
    """The input of each batch, on the network's device; ValueError for one that can't calibrate anything."""
    first: Tensor | None = None
    count, same = 0, True
    for i, batch in enumerate(batches):
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            kind = type(batch).__name__
            raise ValueError(f"a batch of calibration_data is a {kind}; it must be an input tensor, or begin with one")
        if not x.numel():
            raise ValueError(f"batch {i} of calibration_data is empty, of shape {tuple(x.shape)}; leave it out")
        rows = x if x.dim() else x[None]
        first = rows[0] if first is None else first
        count += len(rows)
        same = same and rows[0].shape == first.shape and bool((rows == first).all())
        yield x if like is None else x.to(like.device)
    if first is None:
        raise ValueError("calibration_data has no batches; pass a few, of inputs like those of training")
    if same and (count > 1 or bool((first == first.flatten()[0]).all())):
        what = f"its {count} samples are all the same" if count > 1 else "its one sample has one value everywhere"
        raise ValueError(f"calibration_data shows too little: {what}; pass inputs like those of training, or {_REMEDY}")


@torch.no_grad()
def calibrated(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], rate: float, inner_bias: bool
) -> dict[str, Start]:
    """Finds starting values for ``layers`` (still basic) with which their branches fire at ``rate``.

    The model is run in eval mode, once; its modes, buffers and hooks and the random state are put back.

    Args:
        model: the basic network.
        layers: the layers to calibrate, by name.
        batches: input tensors ``(N, ...)``, or tuples or lists that begin with one.
        rate: wanted fraction of places in which the branch fires, between 0 and 1.
        inner_bias: whether the units will have b1.

    Returns:
        For each name either ``collision_weight`` (w' in the paper's units) or ``inner_bias``, ``(C_out,)``.

    Raises:
        ValueError: no or empty batches; values that aren't finite; a layer that the batches never reach; a layer with
            negative inputs but without b1.
    """
    records = {name: _Record() for name in layers}
    of = {module: records[name] for name, module in layers.items()}
    with undisturbed(model), watched(of, lambda module, x, output: of[module].add(module, x, output)):
        for x in _inputs(batches, next(model.parameters(), None)):
            model(x)
    for name, record in records.items():
        if not record.y:
            raise ValueError(f"calibration_data never reached layer {name!r}: leave it out by filter_fn")
        if not record.finite:
            raise ValueError(f"layer {name!r} has values that aren't finite on calibration_data; {_REMEDY}")
        if not (record.nonnegative or inner_bias):
            what = f"layer {name!r} has negative inputs, where only b1 can calibrate"
            raise ValueError(f"{what}; set inner_bias=True, or leave the layer out by filter_fn")
    return {name: record.start(rate) for name, record in records.items()}
