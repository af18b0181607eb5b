"""How often the collision of a unit changes its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icnets.layers import IC_LAYERS
from icnets.subclasses import basic_of

__all__ = ["firing_rates"]


def firing_rates(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """For each IC unit the share, in [0, 1], of output places in which its branch fires (ours).

    Measured as where the unit's output differs from that of its basic layer, so a branch whose gain is 0 never fires.

    Args:
        model: run once on ``inputs``, in the mode that it is in, without gradients.

    Returns:
        By the unit's name; a unit that runs several times counts all its places, one that doesn't run is left out.
    """
    fired: dict[str, list[int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, IC_LAYERS):
            handles.append(module.register_forward_hook(_counter(fired.setdefault(name, [0, 0]))))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: changed / places for name, (changed, places) in fired.items() if places}


def _counter(count: list[int]) -> Any:
    def hook(unit: nn.Module, args: Sequence[Any], z: Tensor) -> None:
        y = basic_of(unit).forward(unit, *args)
        # Where nothing fires both are the same but for the order of additions.
        count[0] += int(((z - y).abs() > 1e-6 * y.abs().amax()).sum())
        count[1] += z.numel()

    return hook
