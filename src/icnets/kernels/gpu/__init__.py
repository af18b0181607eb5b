"""The passes of an IC unit on GPUs: Triton kernels, each equal by test to what it takes the place of.

Triton is optional: without it, where it fails, or with ``ICNETS_TRITON=0``, torch's own operators give the same numbers
by more passes over memory. Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels on the CPU, for tests.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from icnets.kernels.gpu.layout import Layout

__all__ = ["SUMS", "channel_sums", "deployed_pointwise", "run", "serves"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # numbers reach a kernel in single precision only
_HALF = (torch.float16, torch.bfloat16)
_DEVICE = "cuda"
_MODULES = {"collide_": "collide", "collide_backward": "collide", "post_": "collide", "defer": "deferred"}
SUMS = "_icnets_channel_sums"  # attribute of a tensor: its sums, and the version of it that they are of
_available = os.environ.get("ICNETS_TRITON", "1") != "0" and find_spec("triton") is not None


def serves(x: Tensor) -> bool:
    """Whether kernels can take tensors like ``x``, and nothing watches what is called."""
    if x.device.type != _DEVICE or not _available or x.dtype not in _TYPES:
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def run(name: str, y: Tensor, s: Tensor, *args: Any) -> Any:
    """The result of a function of the kernels' modules, or None where they don't serve.

    Its arguments: an activation ``(N, C, *L)``, sums ``(N, groups, *L)``, their layout (added here), and ``args``.
    """
    if not serves(y) or (layout := Layout.of(y, s)) is None:
        return None
    if any(isinstance(v, Tensor) and v.dim() < 2 and v.shape != y.shape[1:2] for v in args):
        return None  # a vector of another length: torch's operators say so, and the kernels would read past its end
    return _guarded(_MODULES[name], name, y, s, layout, *args)


def channel_sums(x: Tensor) -> Tensor | None:
    """The sums of x over its channels ``(N, 1, *L)``, if the kernel that made x has left them."""
    sums, version = x.__dict__.get(SUMS, (None, None))
    return sums if version == x._version else None


def deployed_pointwise(
    x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], post: tuple[Any, ...], otherwise: Any
) -> Tensor | None:
    """A deployed 1x1 convolution without padding and groups by one kernel, or None where that can't serve or gain.

    See :func:`icnets.kernels.gpu.pointwise.deployed`.
    """
    if not serves(x) or x.dtype not in _HALF or weight.dtype != x.dtype or x.dim() != 4 or x.numel() == 0:
        return None
    if x.size(1) != weight.size(1) or min(stride) < 1:
        return None  # torch's convolution says so
    if not x.movedim(1, -1).is_contiguous() or torch.is_autocast_enabled(x.device.type):
        return None
    return cast("Tensor | None", _guarded("pointwise", "deployed", x, weight, bias, stride, post, otherwise))


def _guarded(module: str, name: str, *args: Any) -> Any:
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler for Triton's launcher, a GPU too old: it says so in every way
        global _available
        _available = False
        warnings.warn(
            f"the Triton kernels fail here ({type(error).__name__}: {str(error).splitlines()[0][:200]}); torch's own "
            "operators are used from now on. ICNETS_TRITON=0 says so from the start",
            stacklevel=2,
        )
        return None
