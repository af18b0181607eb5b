"""PyTorch's own formats: an exported program, and one compiled ahead of time to a library for this machine's CPU."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from icnets.deploy.export.parity import Runner, eager

__all__ = [
    "holds_compiled",
    "notes_of_compiled",
    "notes_of_program",
    "read_compiled",
    "read_program",
    "require_compiler",
    "write_compiled",
    "write_program",
]

NOTES = "icnets.json"  # the extra file in a program's archive


def write_program(program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
    """The program as ``torch.export.load`` reads it; ``notes`` as the extra file icnets.json."""
    torch.export.save(program, path, extra_files={NOTES: json.dumps(dict(notes), sort_keys=True)})


def read_program(path: Path) -> Runner:
    """Runs a file of :func:`write_program`."""
    return eager(torch.export.load(path).module())


def notes_of_program(path: Path) -> dict[str, str]:
    """What :func:`write_program` noted in the file; the program itself isn't read."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{NOTES}")]
        return dict(json.loads(archive.read(names[0]))) if names else {}


def holds_compiled(path: Path) -> bool:
    """Whether a .pt2 file is one of :func:`write_compiled`."""
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def require_compiler() -> None:
    """Raises ValueError where there is no C++ compiler, without which nothing can be compiled ahead of time."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("format aoti needs a C++ compiler, and none was found; install g++ or set CXX") from error


def write_compiled(program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
    """The program compiled by AOTInductor; ``notes`` as the package's metadata."""
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(notes)}
    )


def read_compiled(path: Path) -> Runner:
    """Runs a file of :func:`write_compiled`, without Python in between."""
    compiled = torch._inductor.aoti_load_package(str(path))
    return eager(compiled)  # type: ignore[arg-type]  # a callable, but no Module


def notes_of_compiled(path: Path) -> dict[str, str]:
    """What :func:`write_compiled` noted in the file, beside what AOTInductor notes by itself."""
    return dict(torch._inductor.aoti_load_package(str(path)).get_metadata())
