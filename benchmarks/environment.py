"""What a timing depends on besides the network: processor, threads, versions, and the library's own sources."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import icnets
from icnets.unit.kernels import native

__all__ = ["Environment", "physical_cores"]

PACKAGES = ("torch", "timm", "onnxruntime", "openvino")
_NOT_TIMED = ("training", "evaluation", "cli.py", "help.py")


@dataclass(frozen=True)
class Environment:
    """``sources`` is a hash of the library's code, as far as networks are made of it.

    ``cpu`` is the processor's name, and since 2026-11-28 what torch uses of it: a name is often shared by several.
    """

    cpu: str
    threads: int
    versions: dict[str, str]
    sources: str

    @classmethod
    def here(cls, threads: int) -> Environment:
        return cls(_cpu(), threads, _versions(), _sources(Path(icnets.__file__).parent))

    def digest(self, *files: Path) -> str:
        """Name for what was compiled here, and made by ``files`` besides."""
        parts = [repr(self).encode(), *(f.read_bytes() for f in files)]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads not counted."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _cpu() -> str:
    """The processor's name, where Linux tells it, else its architecture; and its vector instructions."""
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text(encoding="utf-8").splitlines() if info.exists() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    kernels = "C++" if native.loaded() else "torch's own"
    return {"python": platform.python_version(), "icnets": icnets.__version__, "CPU kernels": kernels, **found}


def _installed(name: str) -> bool:
    return bool(importlib.metadata.packages_distributions().get(name))


def _sources(package: Path) -> str:
    code = (p for p in package.rglob("*") if p.suffix in (".py", ".cpp", ".h"))
    files = sorted(p for p in code if p.relative_to(package).parts[0] not in _NOT_TIMED)
    parts = [part for p in files for part in (str(p.relative_to(package)).encode(), p.read_bytes())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
