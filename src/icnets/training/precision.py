"""Mixed precision where Lightning has none: float16 on CPUs, and under FSDP2."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

__all__ = ["precision_options"]


def precision_options(precision: Any, accelerator: str, strategy: Any) -> dict[str, Any]:
    """Arguments for Lightning's Trainer in the place of ``precision``.

    Lightning turns 16-mixed on CPUs into bf16-mixed, and takes neither under its strategy for FSDP2, though its own
    plugin does both: autocast, and for float16 torch's gradient scaler (which reduces over shards what it finds).

    Args:
        precision: as for the Trainer.
        accelerator: as for the Trainer.
        strategy: as for the Trainer.

    Returns:
        ``{"plugins": [plugin], "precision": None}`` where that is needed; nothing elsewhere.
    """
    name = {"16": "16-mixed", "bf16": "bf16-mixed"}.get(str(precision), precision)
    cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if name != "16-mixed" or not (cpu or strategy == "fsdp2"):
        return {}
    return {"plugins": [MixedPrecision("16-mixed", "cpu" if cpu else "cuda")], "precision": None}
