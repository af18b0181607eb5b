"""How often the collision of a unit fires."""

from typing import Any

import torch
from torch import Tensor, nn

from icnets.support.hooks import undisturbed, watched
from icnets.support.plain import deepcopy, made_plain_
from icnets.unit.layers import IC_LAYERS

_ROUNDING = 1e-12  # of float64, relative to the largest output


def firing_share(unit: nn.Module, x: Tensor) -> float:
    """Share of positive arguments ``y - w's + b1`` of an IC layer's rectifier, for its input ``x`` (N, C_in, *L).

    Seen from outside, in float64: where the output differs from the basic layer's. A gain, which may be 0 or negative,
    is left aside.
    """
    double: Any = made_plain_(deepcopy(unit).double())
    if (gain := double.vectors()[2]) is not None:
        gain.data.fill_(1)
    z, y = double.forward(x.double()), deepcopy(double).give_back_().forward(x.double())
    return float((z - y > _ROUNDING * y.abs().max()).double().mean())


@torch.no_grad()
def firing_rates(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """:func:`firing_share` of each IC unit of a network, by its name.

    Args:
        model: run once on ``inputs``, in the mode that it is in, without gradients; its buffers
            and the random state come back.

    Returns:
        The mean over its calls for a unit that runs several times; one that doesn't run is left out.
    """
    units = {module: name for name, module in model.named_modules() if isinstance(module, IC_LAYERS)}
    shares: dict[str, list[float]] = {name: [] for name in units.values()}
    watch = watched(units, lambda unit, x, z: shares[units[unit]].append(firing_share(unit, x)))
    with undisturbed(model, evaluating=False), watch:
        model(*inputs)
    return {name: sum(own) / len(own) for name, own in shares.items() if own}
