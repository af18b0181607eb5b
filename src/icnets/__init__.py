"""IC networks: any CNN becomes an Inter-layer Collision network (arXiv 2102.03495) in one call."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icnets.checkpoint import CheckpointError, load, save
    from icnets.convert import ConversionReport, ICConfig, convert_, load_basic_state_dict, revert_
    from icnets.distill import DistillationSchedule, Teacher, WeakLogitDistillation
    from icnets.fuse import FuseReport, fuse_
    from icnets.layers import (
        ICConv1d,
        ICConv2d,
        ICConv3d,
        ICConvTranspose1d,
        ICConvTranspose2d,
        ICConvTranspose3d,
        ICLinear,
        ic_parameters,
    )
    from icnets.timm_models import create_model

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "DistillationSchedule",
    "FuseReport",
    "ICConfig",
    "ICConv1d",
    "ICConv2d",
    "ICConv3d",
    "ICConvTranspose1d",
    "ICConvTranspose2d",
    "ICConvTranspose3d",
    "ICLinear",
    "Teacher",
    "WeakLogitDistillation",
    "convert_",
    "create_model",
    "fuse_",
    "ic_parameters",
    "load",
    "load_basic_state_dict",
    "revert_",
    "save",
]

# Imported when first asked for: `icnets --help` must not wait for torch.
_LATER = {
    "CheckpointError": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "ConversionReport": "convert",
    "ICConfig": "convert",
    "convert_": "convert",
    "load_basic_state_dict": "convert",
    "revert_": "convert",
    "DistillationSchedule": "distill",
    "Teacher": "distill",
    "WeakLogitDistillation": "distill",
    "FuseReport": "fuse",
    "fuse_": "fuse",
    "ICConv1d": "layers",
    "ICConv2d": "layers",
    "ICConv3d": "layers",
    "ICConvTranspose1d": "layers",
    "ICConvTranspose2d": "layers",
    "ICConvTranspose3d": "layers",
    "ICLinear": "layers",
    "ic_parameters": "layers",
    "create_model": "timm_models",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'icnets' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"icnets.{_LATER[name]}"), name)
