"""IC networks: any CNN becomes an Inter-layer Collision network (arXiv 2102.03495) in one call."""

from typing import TYPE_CHECKING, Any

from icnets.convert import ConversionReport, ICConfig, convert_, load_basic_state_dict, revert_
from icnets.layers import ICConv1d, ICConv2d, ICConv3d, ICLinear, ic_parameters

if TYPE_CHECKING:
    from icnets.checkpoint import CheckpointError, load, save
    from icnets.distill import DistillationSchedule, Teacher, WeakLogitDistillation
    from icnets.timm_models import create_model

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "DistillationSchedule",
    "ICConfig",
    "ICConv1d",
    "ICConv2d",
    "ICConv3d",
    "ICLinear",
    "Teacher",
    "WeakLogitDistillation",
    "convert_",
    "create_model",
    "ic_parameters",
    "load",
    "load_basic_state_dict",
    "revert_",
    "save",
]

# What needs more than torch is imported when first asked for.
_LATER = {
    "CheckpointError": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "DistillationSchedule": "distill",
    "Teacher": "distill",
    "WeakLogitDistillation": "distill",
    "create_model": "timm_models",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'icnets' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"icnets.{_LATER[name]}"), name)
