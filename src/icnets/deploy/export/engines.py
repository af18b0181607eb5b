"""The formats, by name: what each needs, writes, and is read by."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.deploy.export import to_onnx, to_openvino, to_torch
from icnets.deploy.export.parity import Runner
from icnets.support.text import first_line

__all__ = ["ENGINES", "SUFFIXES", "Engine", "open_artefact", "require"]


@dataclass(frozen=True)
class Engine:
    """One format.

    ``suffix``: of its file. ``packages``: what writing and reading import; the first is the engine that runs it.
    ``write(program, path, notes)``, ``read(path)``, ``notes(path)``, ``quantize(source, target, images, notes)``;
    ``check()`` raises ValueError for what else is missing on this machine. ``companions``: suffixes of files that
    belong to it. ``lower(network)`` rewrites a deployed network, in place, into what the engine runs fastest in
    float32.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    read: Callable[[Path], Runner]
    notes: Callable[[Path], dict[str, str]]
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
        to_onnx.notes,
        quantize=to_onnx.quantize,
        lower=to_onnx.lower,
    ),
    "openvino": Engine(
        ".xml",
        ("openvino", "onnx", "onnxscript"),
        to_openvino.write,
        to_openvino.read,
        to_openvino.notes,
        quantize=to_openvino.quantize,
        quantize_packages=("nncf",),
        companions=(".bin",),
        lower=to_openvino.lower,
    ),
    "torch-export": Engine(
        ".pt2", ("torch",), to_torch.write_program, to_torch.read_program, to_torch.notes_of_program
    ),
    "aoti": Engine(
        ".pt2",
        ("torch",),
        to_torch.write_compiled,
        to_torch.read_compiled,
        to_torch.notes_of_compiled,
        check=to_torch.require_compiler,
    ),
}
SUFFIXES = tuple(dict.fromkeys(engine.suffix for engine in ENGINES.values()))


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


def open_artefact(path: Path) -> tuple[str, Runner, dict[str, str]]:
    """The format of an artefact, what runs it, and what it notes. It is a program: it does what its maker wants.

    Raises:
        ValueError: the file is missing, damaged or no artefact of ours, or its engine isn't installed.
    """
    if not path.is_file():
        raise ValueError(f"there is no artefact {path}; check the path")
    try:
        format = _format(path)
        engine = ENGINES[format]
        if not _installed(engine.packages[0]):
            raise ModuleNotFoundError(engine.packages[0])
        notes = engine.notes(path)
        runner = engine.read(path) if "icnets" in notes else None
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs {engine.packages[0]}: pip install 'icnets[export]'") from error
    except Exception as error:  # each engine has its own
        raise ValueError(f"{path} can't be read as an artefact ({first_line(error)}); export it again") from error
    if runner is None:
        raise ValueError(
            f"{path} was not written by icnets export: it doesn't say what images it takes; export it again"
        )
    return format, runner, notes


def _format(path: Path) -> str:
    if path.suffix == ".pt2":
        return "aoti" if to_torch.holds_compiled(path) else "torch-export"
    return next(name for name, engine in ENGINES.items() if engine.suffix == path.suffix)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported, but without a spec
        return False
