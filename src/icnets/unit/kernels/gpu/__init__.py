"""The passes of an IC unit on GPUs as Triton kernels, each equal by test to the operators that it replaces.

Off by default: no GPU has yet shown them faster than torch's own operators, which give the same numbers.
``ICNETS_TRITON=1`` turns them on. Triton's interpreter (``TRITON_INTERPRET=1``) runs them on the CPU, for tests.
"""

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from icnets.support.text import first_line
from icnets.unit.kernels.gpu.layout import Layout

__all__ = ["run", "serves"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # numbers reach a kernel in single precision only
_DEVICE = "cuda"
_available = os.environ.get("ICNETS_TRITON", "0") == "1" and find_spec("triton") is not None


def serves(x: Tensor) -> bool:
    """Whether kernels can take tensors like ``x``, and nothing watches what is called."""
    if x.device.type != _DEVICE or not _available or x.dtype not in _TYPES:
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def run(name: str, y: Tensor, s: Tensor, *args: Any) -> Any:
    """The result of a function of :mod:`icnets.unit.kernels.gpu.collide`, or None where the kernels don't serve.

    Its arguments: an activation ``(N, C, *L)``, sums ``(N, groups, *L)``, their layout (added here), and ``args``.
    """
    if not serves(y) or (layout := Layout.of(y, s)) is None:
        return None
    s = s.flatten(2)  # the kernels know one stride from place to place
    if any(isinstance(v, Tensor) and v.dim() < 2 and v.shape != y.shape[1:2] for v in args):
        return None  # a vector of another length: torch's operators say so, and the kernels would read past its end
    try:
        return getattr(import_module(f"{__name__}.collide"), name)(y, s, layout, *args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler for Triton's launcher, a GPU too old: it says so in every way
        global _available
        _available = False
        what = f"the Triton kernels fail here ({type(error).__name__}: {first_line(error)[:200]})"
        instead = "torch's own operators are used from now on, as they are without ICNETS_TRITON=1"
        warnings.warn(f"{what}; {instead}", stacklevel=2)
        return None
