"""Where and with what something was measured, for the record; and whether it can be done here."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch


def versions(*packages: str) -> dict[str, str]:
    """Versions of icnets, Python and these packages."""
    return {"icnets": version("icnets"), "python": platform.python_version(), **{p: version(p) for p in packages}}


def machine() -> dict[str, Any]:
    """System, processor, number of cores, what torch uses of the processor, and the CUDA device's name or None."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # "AVX512": other ratios than "AVX2"
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def require_accelerator(accelerator: str) -> None:
    """Raises ValueError where a GPU is asked for, by Lightning's name, and there is none."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"accelerator is {accelerator}, but torch finds no CUDA device; use cpu or auto")


def require_device(device: str) -> None:
    """Raises ValueError for a device other than the CPU and CUDA's, or one that torch doesn't find here."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device is {device!r}; it must be cpu or cuda")
    if kind == "cuda" and not int(index or 0) < torch.cuda.device_count():
        raise ValueError(f"--device is {device!r}, but torch finds no such CUDA device here; use --device cpu")
