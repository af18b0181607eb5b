"""A program compiled ahead of time to a library for this machine's CPU, by AOTInductor."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from icnets.deploy.export.engine_base import Engine
from icnets.deploy.export.parity import Runner, eager


def holds_compiled(path: Path) -> bool:
    """Whether a .pt2 file is a compiled one."""
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


class AOTInductor(Engine):
    """The compiled program, which runs without Python in between; notes as the package's metadata."""

    def check(self) -> None:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError("format aoti needs a C++ compiler, and none was found; install g++ or set CXX") from error

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        options = {"aot_inductor.metadata": dict(notes)}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)

    def read(self, path: Path) -> Runner:
        return eager(torch._inductor.aoti_load_package(str(path)))

    def notes(self, path: Path) -> dict[str, str]:
        return dict(torch._inductor.aoti_load_package(str(path)).get_metadata())
