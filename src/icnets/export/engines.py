"""The formats, by name: what each needs, writes, and is read by."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.export import to_onnx, to_openvino, to_torch
from icnets.export.parity import Runner

__all__ = ["ENGINES", "Engine", "require"]


@dataclass(frozen=True)
class Engine:
    """One format.

    ``suffix``: of its file. ``packages``: what writing and reading import; the first is the engine that runs it.
    ``write(program, path, notes)``, ``read(path)``, ``quantize(source, target, images, notes)``; ``check()`` raises
    ValueError for what else is missing on this machine. ``companions``: suffixes of files that belong to it.
    ``lower(network)`` rewrites a deployed network, in place, into what the engine runs fastest in float32.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    read: Callable[[Path], Runner]
    quantize: Callable[[Path, Path, Sequence[Tensor], Mapping[str, str]], None] | None = None
    quantize_packages: tuple[str, ...] = ()
    check: Callable[[], None] | None = None
    companions: tuple[str, ...] = ()
    lower: Callable[[nn.Module], nn.Module] = lambda network: network

    @property
    def name(self) -> str:
        """The engine and its version."""
        return f"{self.packages[0]} {importlib.metadata.version(self.packages[0])}"


ENGINES = {
    "onnx": Engine(
        ".onnx",
        ("onnxruntime", "onnx", "onnxscript"),
        to_onnx.write,
        to_onnx.read,
        quantize=to_onnx.quantize,
        lower=to_onnx.lower,
    ),
    "openvino": Engine(
        ".xml",
        ("openvino", "onnx", "onnxscript"),
        to_openvino.write,
        to_openvino.read,
        quantize=to_openvino.quantize,
        quantize_packages=("nncf",),
        companions=(".bin",),
        lower=to_openvino.lower,
    ),
    "torch-export": Engine(".pt2", ("torch",), to_torch.write_program, to_torch.read_program),
    "aoti": Engine(
        ".pt2", ("torch",), to_torch.write_compiled, to_torch.read_compiled, check=to_torch.require_compiler
    ),
}


def require(format: str, int8: bool) -> Engine:
    """The engine of ``format``. Raises ValueError for an unknown one, and for what it lacks on this machine."""
    if format not in ENGINES:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(ENGINES)}")
    engine = ENGINES[format]
    if int8 and engine.quantize is None:
        able = " and ".join(name for name, e in ENGINES.items() if e.quantize is not None)
        raise ValueError(f"int8 is for the formats {able}, not for {format}; leave it out, or take one of these")
    missing = [p for p in (*engine.packages, *(engine.quantize_packages if int8 else ())) if not _installed(p)]
    if missing:
        what = f"format {format}{' in int8' if int8 else ''}"
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install 'icnets[export]'")
    if engine.check is not None:
        engine.check()
    return engine


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported, but without a spec
        return False
