"""The passes of an IC unit on GPUs: Triton kernels, each equal by test to what it takes the place of.

Triton is optional: without it, where it fails, or with ``ICNETS_TRITON=0``, torch's own operators give the same numbers
by more passes over memory. Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels on the CPU, for tests.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from icnets.kernels.gpu.layout import Layout

__all__ = ["run", "serves"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # numbers reach a kernel in single precision only
_DEVICE = "cuda"
_available = os.environ.get("ICNETS_TRITON", "1") != "0" and find_spec("triton") is not None


def serves(x: Tensor) -> bool:
    """Whether kernels can take tensors like ``x``, and nothing watches what is called."""
    if x.device.type != _DEVICE or not _available or x.dtype not in _TYPES:
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def run(name: str, y: Tensor, s: Tensor, *args: Any) -> Any:
    """The result of a function of :mod:`icnets.kernels.gpu.collide`, or None where the kernels don't serve.

    Its arguments: an activation ``(N, C, *L)``, sums ``(N, groups, *L)``, their layout (added here), and ``args``.
    """
    if not serves(y) or (layout := Layout.of(y, s)) is None:
        return None
    try:
        return getattr(import_module("icnets.kernels.gpu.collide"), name)(y, s, layout, *args)
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
