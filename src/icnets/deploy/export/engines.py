"""The formats by name, and artifacts of any of them."""

from pathlib import Path

from torch import Tensor, nn

from icnets.deploy.export.engine_base import Engine, is_installed
from icnets.deploy.export.parity import Runner
from icnets.deploy.export.to_aoti import AOTInductor, holds_compiled
from icnets.deploy.export.to_onnx import Onnx
from icnets.deploy.export.to_openvino import OpenVino
from icnets.deploy.export.to_torch_export import TorchExport
from icnets.support.text import first_line

ENGINES: dict[str, Engine] = {
    "onnx": Onnx(),
    "openvino": OpenVino(),
    "torch-export": TorchExport(),
    "aoti": AOTInductor(),
}
SUFFIXES = tuple(dict.fromkeys(engine.suffix for engine in ENGINES.values()))


def require(format: str, int8: bool) -> Engine:
    """The engine of ``format``. Raises ValueError for an unknown one, and for what it lacks on this machine."""
    if format not in ENGINES:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(ENGINES)}")
    engine = ENGINES[format]
    if int8 and format != "onnx":
        raise ValueError(f"int8 is for the format onnx, not for {format}; leave it out, or take onnx")
    if missing := [package for package in engine.packages if not is_installed(package)]:
        raise ValueError(f"format {format} needs {', '.join(missing)}: pip install 'icnets[export]'")
    engine.check()
    return engine


class Artifact(nn.Module):
    """An artifact as a network: float32 images (N, C, *L) on the CPU to its output, or to a list of several.

    ``format``: its name in :data:`ENGINES`. ``notes``: what its maker noted in it.
    """

    def __init__(self, format: str, notes: dict[str, str], run: Runner) -> None:
        super().__init__()
        self.format, self.notes, self._run = format, notes, run

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Raises whatever the engine raises."""
        outputs = self._run(x)
        return outputs[0] if len(outputs) == 1 else outputs


def open_artifact(path: Path) -> Artifact:
    """Opens an artifact of ``icnets export``. It is a program: it does what its maker wants.

    Raises:
        ValueError: the file is missing, damaged or no artifact of ours, or its engine isn't installed.
    """
    if not path.is_file():
        raise ValueError(f"there is no artifact {path}; check the path")
    format = next(name for name, engine in ENGINES.items() if engine.suffix == path.suffix)
    if not is_installed(package := ENGINES[format].packages[0]):
        raise ValueError(f"{path} needs {package}: pip install 'icnets[export]'")
    try:
        format = "aoti" if path.suffix == ".pt2" and holds_compiled(path) else format
        notes = ENGINES[format].notes(path)
        run = ENGINES[format].read(path) if "icnets" in notes else None
    except Exception as error:  # each engine has its own
        raise ValueError(f"{path} can't be read as an artifact ({first_line(error)}); export it again") from error
    if run is None:
        raise ValueError(f"{path} was not written by icnets export; export the network again")
    return Artifact(format, notes, run)
