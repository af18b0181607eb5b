"""IC networks: any CNN becomes an Inter-layer Collision network (arXiv 2102.03495) in one call."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icnets.checkpoint import CheckpointError, load, save
    from icnets.convert.surgery import ConversionReport, ICConfig, convert_, load_basic_state_dict, revert_
    from icnets.deploy.fuse import FuseReport, fuse_
    from icnets.distill import DistillationSchedule, Teacher, WeakLogitDistillation
    from icnets.timm_models import create_model
    from icnets.unit.layers import (
        ICConv1d,
        ICConv2d,
        ICConv3d,
        ICConvTranspose1d,
        ICConvTranspose2d,
        ICConvTranspose3d,
        ICLinear,
        ic_parameters,
    )

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
    "ConversionReport": "convert.surgery",
    "ICConfig": "convert.surgery",
    "convert_": "convert.surgery",
    "load_basic_state_dict": "convert.surgery",
    "revert_": "convert.surgery",
    "DistillationSchedule": "distill",
    "Teacher": "distill",
    "WeakLogitDistillation": "distill",
    "FuseReport": "deploy.fuse",
    "fuse_": "deploy.fuse",
    "ICConv1d": "unit.layers",
    "ICConv2d": "unit.layers",
    "ICConv3d": "unit.layers",
    "ICConvTranspose1d": "unit.layers",
    "ICConvTranspose2d": "unit.layers",
    "ICConvTranspose3d": "unit.layers",
    "ICLinear": "unit.layers",
    "ic_parameters": "unit.layers",
    "create_model": "timm_models",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'icnets' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"icnets.{_LATER[name]}"), name)
