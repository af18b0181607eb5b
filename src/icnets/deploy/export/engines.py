"""The formats: how each writes a program, reads it back, and runs it fastest."""

import json
import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.deploy.export import to_onnx
from icnets.deploy.export.parity import Runner, eager
from icnets.support.text import first_line


class _Engine:
    """One format: it writes a program with notes where tools of the format keep theirs, and reads both back.

    ``suffix``: of its file; ``companions``: suffixes of the files that belong to it. ``packages``: what writing and
    reading import; the first is the engine that runs it. ``signs_by_convolution``: the form of
    :func:`icnets.deploy.export.lowering.lower_` that runs fastest in float32; None: a network is written as it is.
    """

    suffix: str
    companions: tuple[str, ...] = ()
    packages: tuple[str, ...]
    signs_by_convolution: bool | None = None

    @property
    def name(self) -> str:
        """The engine and its version."""
        return f"{self.packages[0]} {version(self.packages[0])}"


class Onnx(_Engine):
    """One file with the weights in it; notes as metadata_props."""

    suffix = ".onnx"
    packages = ("onnxruntime", "onnx", "onnxscript")
    signs_by_convolution = True  # which ONNX Runtime computes in its blocked layout

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        proto = to_onnx.to_proto(program)
        to_onnx.join_residuals(proto)
        to_onnx.put_clips_into_convolutions(proto)
        to_onnx.save(proto, path, notes)

    def read(self, path: Path) -> Runner:
        session = to_onnx.session(path)
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {to_onnx.INPUT: x.numpy()})]

    def notes(self, path: Path) -> dict[str, str]:
        return dict(to_onnx.session(path).get_modelmeta().custom_metadata_map)


class OpenVino(_Engine):
    """OpenVINO's files, by way of ONNX, in float32; notes in the section model_info, as its own tools keep theirs."""

    suffix = ".xml"
    companions = (".bin",)
    packages = ("openvino", "onnx", "onnxscript")
    signs_by_convolution = False  # a sign is part of the convolution before it

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        # Core.read_model, not convert_model: the same reader, without the telemetry of the latter.
        model = _openvino().Core().read_model(to_onnx.to_proto(program).SerializeToString())
        for key, value in notes.items():
            model.set_rt_info(value, ["model_info", key])
        _openvino().save_model(model, path, compress_to_fp16=False)

    def read(self, path: Path) -> Runner:
        # Without the hint, CPUs with bfloat16 compute in it.
        compiled = _openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: [torch.from_numpy(y.copy()) for y in compiled(x.numpy()).values()]

    def notes(self, path: Path) -> dict[str, str]:
        model = _openvino().Core().read_model(path)
        info = model.get_rt_info(["model_info"]).astype(dict) if model.has_rt_info(["model_info"]) else {}
        return {key: str(value.astype(str)) for key, value in info.items()}


def _openvino() -> ModuleType:
    """OpenVINO, imported so that it sends nothing: it reports its import to its makers, unless in somebody's CI."""
    given = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    finally:
        del os.environ["CI"]
        if given is not None:
            os.environ["CI"] = given
    return openvino


class TorchExport(_Engine):
    """The program as torch.export saves it; notes as an extra file in its archive."""

    suffix = ".pt2"
    packages = ("torch",)
    file = "icnets.json"

    def write(self, program: ExportedProgram, path: Path, notes: Mapping[str, str]) -> None:
        torch.export.save(program, path, extra_files={self.file: json.dumps(dict(notes), sort_keys=True)})

    def read(self, path: Path) -> Runner:
        return eager(torch.export.load(path).module())

    def notes(self, path: Path) -> dict[str, str]:
        with zipfile.ZipFile(path) as archive:  # the program itself isn't read
            names = archive.namelist()
            if any("/aotinductor/" in name for name in names):
                what = "it was compiled by AOTInductor, a format that icnets dropped"
                raise ValueError(f"{what}: export as torch-export and compile that with torch's own tools")
            own = [name for name in names if name.endswith(f"/{self.file}")]
            return dict(json.loads(archive.read(own[0]))) if own else {}


Engine = Onnx | OpenVino | TorchExport
ENGINES: dict[str, Engine] = {"onnx": Onnx(), "openvino": OpenVino(), "torch-export": TorchExport()}
SUFFIXES = tuple(engine.suffix for engine in ENGINES.values())


def require(format: str, int8: bool) -> Engine:
    """The engine of ``format``. Raises ValueError for an unknown one, and for what it lacks on this machine."""
    if format not in ENGINES:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(ENGINES)}")
    engine = ENGINES[format]
    if int8 and format != "onnx":
        raise ValueError(f"int8 is for the format onnx, not for {format}; leave it out, or take onnx")
    if missing := [package for package in engine.packages if find_spec(package) is None]:
        raise ValueError(f"format {format} needs {', '.join(missing)}: pip install 'icnets[export]'")
    return engine


# -- artifacts -------------------------------------------------------------------------------------------------------


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
    if find_spec(package := ENGINES[format].packages[0]) is None:
        raise ValueError(f"{path} needs {package}: pip install 'icnets[export]'")
    try:
        notes = ENGINES[format].notes(path)
        if "icnets" in notes:
            return Artifact(format, notes, ENGINES[format].read(path))
    except Exception as error:  # each engine has its own
        raise ValueError(f"{path} can't be read as an artifact ({first_line(error)}); export it again") from error
    raise ValueError(f"{path} was not written by icnets export; export the network again")
