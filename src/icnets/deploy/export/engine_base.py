"""What every format can do, and what most of them do by default."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from icnets.deploy.export.parity import Runner


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it isn't imported for that."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported, but without a spec
        return False


class Engine:
    """One format.

    ``suffix``: of its file; ``companions``: suffixes of the files that belong to it. ``packages``: what writing and
    reading import; the first is the engine that runs it.
    """

    suffix = ".pt2"
    companions: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("torch",)

    @property
    def name(self) -> str:
        """The engine and its version."""
        return f"{self.packages[0]} {importlib.metadata.version(self.packages[0])}"

    def check(self) -> None:
        """Raises ValueError for what is missing on this machine beside packages."""

    def lower(self, network: nn.Module) -> nn.Module:
        """Rewrites a deployed network, in place, into what the engine runs fastest in float32."""
        return network

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        """Writes a program, with ``notes`` where tools of the format keep theirs."""
        raise NotImplementedError

    def read(self, path: Path) -> Runner:
        """Runs a file on the CPU."""
        raise NotImplementedError

    def notes(self, path: Path) -> dict[str, str]:
        """What :meth:`write` noted in the file."""
        raise NotImplementedError
