"""Calibration: where w', b1 and the gain must start for a trained network to keep its function.

Two things are measured on a few batches. Where the branch fires: behind a ReLU the receptive-field sum s is not
negative, and ``relu(y - w' s)`` fires where y/s > w', so w' is a high quantile of y/s, per channel; where s can be
negative no w' does that, and b1 = -(a high quantile of y) does. And how large the branch may be: the gain is the
largest at which the whole network's output changes by at most a given share on samples that the quantiles haven't seen.

The rate alone can't bound the change. A rare branch changes little on data like those it was calibrated on, and many
times as much on others, because it lives on the tails of the distributions; a small gain scales every place alike.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from icnets.support.hooks import floating_tensors, undisturbed, watched
from icnets.unit import receptive_field
from icnets.unit.subclasses import convolved

_PLACES = 4096  # kept per layer and call: of these, 1 % are 41, known to about a sixth
_HELD_BACK = 256  # samples at most, because they and the network's outputs for them are kept
_SMALLEST_GAIN = 2.0**-20
_MARGIN = 5.0  # crops of one photograph change up to this much more than those of another, on which it was calibrated
_REMEDY = 'use warm_start="gain", which keeps the function exactly and needs no data'

Start = dict[str, Tensor]


@dataclass(frozen=True)
class Calibration:
    """What a calibration chose and measured, on samples that were held back from it.

    Args:
        gain: where the gain on every branch starts; 1 where the configuration bounds no change.
        rate: fraction of places in which the branches fire, averaged over the layers.
        change: relative L2 change of the network's output; of several outputs the one that changes most.
        agreement: fraction of samples whose largest output stays the largest.
        samples: how many these are measured on.
        held_back: False where there was one sample only, on which both was done.
    """

    gain: float
    rate: float
    change: float
    agreement: float
    samples: int
    held_back: bool

    def __str__(self) -> str:
        where = "held back" if self.held_back else "that it was calibrated on, since nothing could be held back"
        found = f"output changed by {self.change:.2%}, largest output the same in {self.agreement:.1%}"
        chosen = f"calibrated: gain {self.gain:.3g}, the branches fire in {self.rate:.2%} of places"
        return f"{chosen}\n  on {self.samples} samples {where}: {found}"


# -- where the branch fires ------------------------------------------------------------------------------------------


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
        field = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
        s = receptive_field.transposed_sum(_wide(x), *field, list(output.shape[-nd:]))
    else:
        x, *window = convolved(module, x)
        s = receptive_field.receptive_field_sum(_wide(x), *window)
    bias = 0 if module.bias is None else receptive_field.column(module.bias, nd)
    return output - bias, s, nd  # a copy of the output, which the network may change in place


# -- the data --------------------------------------------------------------------------------------------------------


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
    if first is not None and same and (count > 1 or bool((first == first.flatten()[0]).all())):
        what = f"its {count} samples are all the same" if count > 1 else "its one sample has one value everywhere"
        raise ValueError(f"calibration_data shows too little: {what}; pass inputs like those of training, or {_REMEDY}")


def _read(model: nn.Module, inputs: Iterator[Tensor]) -> tuple[list[Tensor], bool]:
    """Runs ``model`` on half of the data and returns the rest, and whether the model hasn't seen that."""
    parts = list(islice(inputs, 2))
    if not parts:
        raise ValueError("calibration_data has no batches; pass a few, of inputs like those of training")
    if len(parts) == 1 and (not parts[0].dim() or len(parts[0]) == 1):
        model(parts[0])
        return parts, False
    rest: list[Tensor] = []
    for i, x in enumerate(chain(parts, inputs) if len(parts) == 2 else (parts[0][::2], parts[0][1::2])):
        if i % 2 and sum(map(len, rest)) < _HELD_BACK:
            rest.append(x)
        else:
            model(x)
    return rest, True


# -- how much the network's output changes ---------------------------------------------------------------------------


def _outputs(model: nn.Module, data: Iterable[Tensor]) -> list[list[Tensor]]:
    """For each batch the network's outputs, ``(samples, values)`` each; its randomness is the same every time."""
    torch.manual_seed(0)
    outputs = [floating_tensors(model(x)) for x in data]
    return [[_wide(t.flatten(1) if t.dim() > 1 else t.reshape(-1, 1)) for t in batch] for batch in outputs]


def _energy(t: Tensor) -> Tensor:
    """For each row the sum of squares of what is finite in it, or NaN and infinity where they came about."""
    return t.nan_to_num(math.nan, 0.0, 0.0).double().square().sum(1)


class _Trial:
    """The network as it would be after a conversion, beside what it is, on held-back data.

    It adds each layer's branch, and notes where that fires.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], starts: Mapping[str, Start], data: list[Tensor]
    ) -> None:
        self.model, self.starts, self.data = model, starts, data
        self.names = {module: name for name, module in layers.items()}
        self.gain = 1.0
        self.fired: dict[str, list[Tensor]] = {}
        self.basic = _outputs(model, data)
        if not all(self.basic):
            raise ValueError(f"the network's output holds no floating-point tensor to compare; {_REMEDY}")
        if any(t.isnan().any() for batch in self.basic for t in batch):
            raise ValueError(f"the network puts out NaN on calibration_data; {_REMEDY}")
        if not any(_energy(t).any() for batch in self.basic for t in batch):
            raise ValueError(f"the network's output is zero on calibration_data; {_REMEDY}")

    def outputs(self, gain: float) -> list[list[Tensor]]:
        self.gain, self.fired = gain, {name: [] for name in self.starts}
        with watched(self.names, self._unit):
            return _outputs(self.model, self.data)

    def _unit(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        y, s, nd = _sums(module, x, output)
        name = self.names[module]
        if "inner_bias" in (start := self.starts[name]):
            u = y + receptive_field.column(start["inner_bias"].to(y.dtype), nd)
        else:
            u = receptive_field.plus_sums(y.to(s.dtype), start["collision_weight"].to(s.dtype), s, nd, -1)
        self.fired[name].append((u > 0).float().mean())
        return u.relu_().mul_(self.gain).add_(output).to(output.dtype)

    def rate(self) -> float:
        """The fraction of places that fired in the last run, averaged over the layers."""
        rates = [float(torch.stack(found).mean()) if found else 0.0 for found in self.fired.values()]
        return sum(rates) / len(rates)

    def change(self, outputs: list[list[Tensor]]) -> tuple[float, float]:
        """Relative L2 change of the output that changes most; first over all samples, then for the worst of them."""
        if [[t.shape for t in batch] for batch in outputs] != [[t.shape for t in batch] for batch in self.basic]:
            return math.inf, math.inf
        pairs = [list(zip(after, before, strict=True)) for after, before in zip(outputs, self.basic, strict=True)]
        found = [(0.0, 0.0)]
        for several in zip(*pairs, strict=True):
            size = torch.cat([_energy(before) for _, before in several])
            moved = torch.cat([_energy(torch.where(b.isfinite(), a - b, 0.0)) for a, b in several])
            if not moved.isfinite().all():
                return math.inf, math.inf
            if size.any():
                over_all, worst = (float((m / size.mean()).sqrt()) for m in (moved.mean(), moved.max()))
                found.append((over_all, worst))
        return max(found, key=lambda both: both[1])

    def stretches(self, outputs: list[list[Tensor]]) -> Tensor:
        """For each sample the factor by which its change would have to grow to make another output the largest."""
        found: list[Tensor] = []
        for after, before in zip(outputs, self.basic, strict=True):
            a, b = (torch.cat([t for t in batch if len(t) == len(batch[0])], 1).double() for batch in (after, before))
            gap = b.amax(1, keepdim=True) - b
            change = torch.where(b.isfinite(), a - b, 0.0)
            closing = change - change.gather(1, b.argmax(1, keepdim=True))
            # Those that share the largest value may change places.
            found.append(torch.where((gap > 0) & (closing > 0), gap / closing, torch.inf).amin(1))
        return torch.cat(found)

    def largest_gain(self, max_change: float) -> float:
        """The largest gain, up to 1 and to within a sixth, that is safe by ``max_change``."""
        samples = sum(map(len, self.data))
        # Few samples say little of how rare close decisions are; but if none of n turns at s times the change, fewer
        # than about 1 in n s turn at the change itself.
        margin = _MARGIN * max(1.0, 1 / (max_change * samples))

        def excess(gain: float) -> float:
            outputs = self.outputs(gain)
            over = _MARGIN * self.change(outputs)[1] / max_change
            turning = self.stretches(outputs).sort().values[int(max_change * samples) :]
            return max(over, margin / float(turning[0].clamp_min(1e-6)) if len(turning) and over < math.inf else 0.0)

        good, bad, gain = 0.0, math.inf, 1.0
        while True:
            over = excess(gain)
            good, bad = (gain, bad) if over <= 1 else (good, gain)
            if good and (good == 1 or 0.85 <= over <= 1 or bad <= 1.1 * good):
                return good
            if not good and gain < _SMALLEST_GAIN:
                raise ValueError(f"no gain keeps the change of the output at max_change={max_change:g}; {_REMEDY}")
            # The change is nearly proportional to the gain, so the next guess aims just below the bound.
            aim = min(1.0, 0.95 * gain / min(max(over, 0.01), 64.0))
            gain = aim if good < aim < bad else math.sqrt(good * bad)


@torch.no_grad()
def calibrated(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    rate: float,
    inner_bias: bool,
    max_change: float | None,
) -> tuple[dict[str, Start], Calibration]:
    """Finds starting values for ``layers`` (still basic) that keep the network's function to within ``max_change``.

    The model is run in eval mode; its modes, buffers and hooks and the random state are put back. ``batches`` are read
    once. Every second batch is held back, up to 256 samples; of a single batch every second sample. That half is run
    about ten times, the other once.

    Args:
        model: the basic network.
        layers: the layers to calibrate, by name.
        batches: input tensors ``(N, ...)``, or tuples or lists that begin with one.
        rate: wanted fraction of places in which the branch fires, between 0 and 1.
        inner_bias: whether the units will have b1.
        max_change: bound on the relative L2 change of the network's output, and on the fraction of samples whose
            largest output becomes another; None leaves the gain at 1.

    Returns:
        For each name either ``collision_weight`` (w' in the paper's units) or ``inner_bias``, ``(C_out,)``; and what
        was measured, with the gain.

    Raises:
        ValueError: no or empty batches; values that aren't finite; a layer that the batches never reach; a layer with
            negative inputs but without b1; a change that can't be measured, or is larger at any gain.
    """
    records = {name: _Record() for name in layers}
    of = {module: records[name] for name, module in layers.items()}
    with undisturbed(model):
        with watched(of, lambda module, x, output: of[module].add(module, x, output)):
            data, held_back = _read(model, _inputs(batches, next(model.parameters(), None)))
        _check(records, inner_bias)
        starts = {name: record.start(rate) for name, record in records.items()}
        trial = _Trial(model, layers, starts, data)
        gain = 1.0 if max_change is None else trial.largest_gain(max_change)
        outputs = trial.outputs(gain)
    agreement = float((trial.stretches(outputs) > 1).double().mean())
    change, _ = trial.change(outputs)
    return starts, Calibration(gain, trial.rate(), change, agreement, sum(map(len, data)), held_back)


def _check(records: Mapping[str, _Record], inner_bias: bool) -> None:
    for name, record in records.items():
        if not record.y:
            raise ValueError(f"calibration_data never reached layer {name!r}: leave it out by filter_fn")
        if not record.finite:
            raise ValueError(f"layer {name!r} has values that aren't finite on calibration_data; {_REMEDY}")
        if not (record.nonnegative or inner_bias):
            what = f"layer {name!r} has negative inputs, where only b1 can calibrate"
            raise ValueError(f"{what}; set inner_bias=True, or leave the layer out by filter_fn")
