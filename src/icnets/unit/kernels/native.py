"""The operators of the folder cpu: compiled once for this machine by :func:`build`, and used from then on.

They are optional: without them the same numbers come from torch's own operators, by more passes over memory. What is
built lies in the user's cache folder (``ICNETS_CACHE`` names another), one file for each version of torch, of the
source and of the processor's instructions. The environment variable ``ICNETS_NATIVE=0`` leaves it unused;
``ICNETS_CXXFLAGS`` are further flags for the compiler, as for a build with sanitizers.

Each operator checks all its arguments before it computes: it raises RuntimeError, with torch's own message where
torch's convolution refuses them too, and leaves them as they were.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icnets.support.files import cache_folder, move_into_place

_SOURCES = Path(__file__).with_name("cpu")
_INSTRUCTIONS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-DAT_PER_OPERATOR_HEADERS"]
_SUMS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}  # by x's type

_NAMES = ("ic_conv", "deployed_conv", "field_sums", "add_field_gradient_", "collide_", "collide_backward")

_operators: dict[str, Callable[..., Any]] = {}


def loaded() -> bool:
    """Whether the operators are there: :func:`load` found what :func:`build` had made."""
    return bool(_operators)


def serves(x: Tensor, like: Tensor | None = None, sums: Tensor | None = None) -> bool:
    """Whether the operators can take all: on the CPU, ``like`` of x's type, and nothing watches what is called.

    ``sums`` are of x's type, or in single precision if x is in half: bfloat16; for float16 there are no operators.
    """
    if not _operators or not x.is_cpu or (dtype := x.dtype) not in _SUMS:
        return False
    if like is not None and (like.dtype is not dtype or not like.is_cpu):
        return False
    if sums is not None and (sums.dtype is not _SUMS[dtype] or not sums.is_cpu):
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and not torch.is_autocast_enabled("cpu")


def operator(name: str) -> Callable[..., Any]:
    """An operator by its name; cpu/operators.cpp has the schemas."""
    return _operators[name]


def library() -> Path:
    """Where the library for this machine lies, or will."""
    return cache_folder() / f"native-{_digest()}.so"


def load() -> bool:
    """Loads the library if it was built; returns whether the operators are there."""
    if not _operators and os.environ.get("ICNETS_NATIVE", "1") != "0" and library().is_file():
        try:
            torch.ops.load_library(library())
        except OSError as error:
            warnings.warn(f"{library()} can't be used: {error}; remove it and build it again", stacklevel=2)
            return False
        for name in _NAMES:
            _operators[name] = getattr(torch.ops.icnets, name).default
    return loaded()


def build(force: bool = False) -> Path:
    """Compiles the operators for this machine, if it isn't there yet or with ``force``, and loads it: about 20 seconds.

    Returns the library's path. Raises ValueError where it can't be compiled: no C++ compiler (``CXX`` names one, by
    default g++), or a system other than Linux; OSError where the cache folder can't be written.
    """
    target = library()
    if force or not target.is_file():
        compiler, root = _compiler(), Path(torch.__file__).parent
        headers = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            compiled, linked = Path(folder, "native.o"), Path(folder, "native.so")
            _run([compiler, *_flags(), *headers, "-c", str(_SOURCES / "operators.cpp"), "-o", str(compiled)])
            # Without -fopenmp: its runtime must be torch's own, or two pools of threads get in each other's way.
            libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
            _run([compiler, "-shared", *_own_flags(), str(compiled), "-o", str(linked), *libraries])
            move_into_place(linked, target)
    load()
    return target


@cache
def _digest() -> str:
    """Of everything that the library depends on; a shared home folder may serve machines of several kinds."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.iterdir())]
    parts = [*sources, torch.__version__, platform.machine(), *_flags()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _flags() -> list[str]:
    own = list(_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), []))
    if "-mavx512f" in own and "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        own.append("-mavx512bf16")  # which rounds in one instruction
    return [*_FLAGS, *own, *_own_flags()]


def _own_flags() -> list[str]:
    return shlex.split(os.environ.get("ICNETS_CXXFLAGS", ""))


def _compiler() -> str:
    if platform.system() != "Linux":
        raise ValueError(f"the CPU kernels can be built on Linux only, not on {platform.system()}")
    wanted = os.environ.get("CXX", "g++")
    found = shutil.which(wanted)
    if found is None:
        raise ValueError(f"there is no C++ compiler {wanted!r}; install g++, or set CXX")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise ValueError(f"{Path(command[0]).name} can't build the CPU kernels: {said}; torch's own are used")


load()
