"""PyTorch's own format: an exported program, as ``torch.export.load`` reads it."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from icnets.deploy.export.engine_base import Engine
from icnets.deploy.export.parity import Runner, eager

NOTES = "icnets.json"  # the extra file in a program's archive


class TorchExport(Engine):
    """The program as torch.export saves it; notes as the extra file icnets.json."""

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        torch.export.save(program, path, extra_files={NOTES: json.dumps(dict(notes), sort_keys=True)})

    def read(self, path: Path) -> Runner:
        return eager(torch.export.load(path).module())

    def notes(self, path: Path) -> dict[str, str]:
        with zipfile.ZipFile(path) as archive:  # the program itself isn't read
            names = [name for name in archive.namelist() if name.endswith(f"/{NOTES}")]
            return dict(json.loads(archive.read(names[0]))) if names else {}
