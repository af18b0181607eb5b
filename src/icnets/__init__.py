"""IC networks: any CNN becomes an Inter-layer Collision network (arXiv 2102.03495) in one call."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icnets.checkpoint import CheckpointError as CheckpointError
    from icnets.checkpoint import load as load
    from icnets.checkpoint import save as save
    from icnets.convert.config import ICConfig as ICConfig
    from icnets.convert.surgery import ConversionReport as ConversionReport
    from icnets.convert.surgery import convert_ as convert_
    from icnets.convert.surgery import load_basic_state_dict as load_basic_state_dict
    from icnets.convert.surgery import revert_ as revert_
    from icnets.deploy.fuse import FuseReport as FuseReport
    from icnets.deploy.fuse import fuse_ as fuse_
    from icnets.distill import DistillationSchedule as DistillationSchedule
    from icnets.distill import Teacher as Teacher
    from icnets.distill import WeakLogitDistillation as WeakLogitDistillation
    from icnets.timm_models import create_model as create_model
    from icnets.unit.layers import ICConv1d as ICConv1d
    from icnets.unit.layers import ICConv2d as ICConv2d
    from icnets.unit.layers import ICConv3d as ICConv3d
    from icnets.unit.layers import ICConvTranspose1d as ICConvTranspose1d
    from icnets.unit.layers import ICConvTranspose2d as ICConvTranspose2d
    from icnets.unit.layers import ICConvTranspose3d as ICConvTranspose3d
    from icnets.unit.layers import ICLinear as ICLinear
    from icnets.unit.layers import ic_parameters as ic_parameters
    from icnets.verbs import compare as compare
    from icnets.verbs import fit as fit

__version__ = "0.1.0"

# Public names by module, imported when first asked for: `icnets --help` must not wait for torch.
_NAMES = {
    "checkpoint": "CheckpointError load save",
    "convert.config": "ICConfig",
    "convert.surgery": "ConversionReport convert_ load_basic_state_dict revert_",
    "distill": "DistillationSchedule Teacher WeakLogitDistillation",
    "deploy.fuse": "FuseReport fuse_",
    "unit.layers": "ICConv1d ICConv2d ICConv3d ICConvTranspose1d ICConvTranspose2d ICConvTranspose3d ICLinear "
    "ic_parameters",
    "timm_models": "create_model",
    "verbs": "compare fit",
}
_LATER = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_LATER)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'icnets' has no attribute {name!r}")
    return getattr(import_module(f"icnets.{_LATER[name]}"), name)
