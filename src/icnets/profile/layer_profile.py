"""``icnets profile --layers``: what each layer costs, beside the basic one, and how often its collision fires."""

import gc
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icnets.profile.firing import firing_share
from icnets.profile.measure import COUNTED, Count, layer_macs, use_threads
from icnets.profile.rounds import Ratio, interleaved, paired_ratio
from icnets.support.hooks import undisturbed, watched
from icnets.support.plain import deepcopy, made_plain_
from icnets.support.tables import Table
from icnets.unit.layers import IC_LAYERS


@dataclass(frozen=True)
class LayerCost:
    """One call of a layer; MACs and milliseconds are per image.

    ``kind``: the class of the layer. ``output``: shape without the batch. ``ms``: of the layer as it is;
    ``basic_ms``: of the basic layer in its place, on the same input. ``ratio``: median and quartiles of the first to
    the second, round by round. ``fires``: share in [0, 1] of places and channels in which the rectifier's argument is
    positive. The last three are None for layers without a collision.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    macs: Count
    ms: float
    basic_ms: float | None = None
    ratio: Ratio | None = None
    fires: float | None = None


def profile_layers(
    model: nn.Module,
    sample: Tensor,
    *,
    rounds: int = 11,
    threads: int | None = None,
    min_seconds: float = 0.01,
) -> list[LayerCost]:
    """Costs of the convolutions and linear layers of ``model``, in the order in which they run; eval mode, forward.

    Each is measured when its turn comes in a forward pass, on its true input: the IC layer and the basic layer in
    alternation, as :func:`icnets.profile.rounds.interleaved` does.

    Args:
        model: any network; modes and buffers are restored.
        sample: one batch ``(N, ...)`` on its device.
        rounds: at least 1.
        threads: torch's threads while measuring; None leaves them as they are.
        min_seconds: a measurement repeats a layer until it takes this long.

    Raises:
        ValueError: fewer than 1 round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    costs: list[LayerCost] = []
    calls: Counter[nn.Module] = Counter()
    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, COUNTED)}

    def see(module: nn.Module, x: Tensor, z: Tensor) -> None:
        calls[module] += 1
        name = names[module] + (f", call {calls[module]}" if calls[module] > 1 else "")  # of a shared layer
        costs.append(_cost(name, module, x, z, rounds, min_seconds))

    gc.collect()
    gc.freeze()  # each layer's measurement collects garbage before it begins; it needn't search what is there already
    try:
        with watched(names, see), undisturbed(model), use_threads(threads), torch.no_grad():
            model(sample)
    finally:
        gc.unfreeze()
    return costs


def _cost(name: str, module: nn.Module, x: Tensor, z: Tensor, rounds: int, min_seconds: float) -> LayerCost:
    n = x.shape[0]
    # forward, not the call: hooks, this one too, are left out.
    steps = {"own": lambda: module.forward(x)}
    unit = isinstance(module, IC_LAYERS)
    if unit:
        basic = made_plain_(deepcopy(module)).give_back_()  # type: ignore[operator]
        steps["basic"] = lambda: basic.forward(x)
    times = interleaved(steps, rounds, min_seconds, device=x.device)
    ms = {key: 1000 * statistics.median(own) / n for key, own in times.items()}
    macs = layer_macs(module, x, z)
    return LayerCost(
        name=name,
        kind=type(module).__name__,
        output=tuple(z.shape[1:]),
        macs=Count(round(macs.total / n), round(macs.ic / n)),
        ms=ms["own"],
        basic_ms=ms.get("basic"),
        ratio=paired_ratio(times["own"], times["basic"]) if unit else None,
        fires=firing_share(module, x) if unit else None,
    )


def layer_table(costs: Sequence[LayerCost], title: str, images: str, rounds: int, notes: Sequence[str] = ()) -> Table:
    """The costs as a table; ``images`` says in a few words what the layers were shown."""
    rows = [
        (
            cost.name,
            cost.kind,
            "×".join(map(str, cost.output)),
            cost.macs.format(),
            f"{cost.ms:.3g}",
            "" if cost.basic_ms is None else f"{cost.basic_ms:.3g}",
            "" if cost.ratio is None else f"×{cost.ratio.median:.2f} ({cost.ratio.low:.2f}–{cost.ratio.high:.2f})",
            "" if cost.fires is None else f"{100 * cost.fires:.1f} %",
        )
        for cost in costs
    ]
    units = [cost for cost in costs if cost.basic_ms is not None]
    own, basic = sum(cost.ms for cost in units), sum(cost.basic_ms or 0.0 for cost in units)
    rest = sum(cost.ms for cost in costs) - own
    total = (
        f"All {len(units)} IC layers: {own:.3g} ms/image, {basic:.3g} as basic layers; other layers here: {rest:.3g}. "
        "Norms, activations and pooling aren't in it."
    )
    return Table(
        title,
        ("layer", "kind", "output", "MACs/image (IC)", "ms/image", "basic, ms/image", "ratio (quartiles)", "fires"),
        rows,
        [
            total,
            f"Ratio: the layer to the basic one in its place, on the same input, median over {rounds} rounds in "
            "alternation, forward, eager.",
            f"Fires: part of the output in which the rectifier's argument y − w′s + b₁ is positive; on {images}.",
            *notes,
        ],
    )
