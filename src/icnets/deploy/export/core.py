"""``export``: write, reload, compare, and only then keep."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from icnets.deploy.export import to_onnx
from icnets.deploy.export.engines import Engine, require
from icnets.deploy.export.lowering import lower_
from icnets.deploy.export.parity import BATCHES, ExportReport, Parity, Runner, agreement, compare, eager, labelled
from icnets.deploy.fuse import fuse_, own_input_size
from icnets.support.files import move_into_place
from icnets.support.plain import deepcopy, made_plain_
from icnets.support.text import counted, first_line
from icnets.unit.receptive_field import write_out_

CALIBRATION_IMAGES = 512


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    example_input: Tensor | None = None,
    *,
    fuse: bool = True,
    int8: bool = False,
    calibration_data: Iterable[Any] | None = None,
    evaluation_data: Iterable[Any] | None = None,
    tolerance: float = 1e-4,
    max_loss: float = 0.05,
    metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes ``model`` for another engine, in eval mode and with a dynamic batch, and proves the artifact.

    The artifact is reloaded by its engine and compared with ``model`` in PyTorch, on random and, where there are data,
    on real images, in batches of 1 and 7. It appears at ``path`` only when that went well; a file that was there
    before is replaced then, and kept otherwise.

    Args:
        model: a float32 network of one input; it is copied and stays as it is, mode and device included.
        path: ends in .onnx, .xml ("openvino", with a .bin beside it) or .pt2; its folder must exist.
        format: "onnx", "openvino" or "torch-export" (``torch.export.load``).
        example_input: float32 ``(N, C, *L)``; its shape but for N is the artifact's. By default the network's own, as
            timm notes it.
        fuse: export the deployed form, :func:`icnets.deploy.fuse.fuse_`; False exports the network's own graph.
        int8: quantise by ONNX Runtime's own post-training quantisation ("onnx" alone).
        calibration_data: with ``int8``, representative batches: a tensor, or a tuple whose first item is the input.
            The first 512 images are used.
        evaluation_data: batches, ``(x, labels)`` or ``x``, for the comparison on real images, and with ``int8`` for
            accuracy before and after. By default the calibration data.
        tolerance: largest error allowed in float32, relative to the range of the output.
        max_loss: with ``int8``, largest accuracy lost on the evaluation data (without labels: part of the images that
            change their class), as a part of 1.
        metadata: more of what a user of the artifact must know (``mean``, ``std``, ``class_names``, ...): plain data,
            written into it as JSON beside ``input_size``, ``fused``, ``int8`` and ``icnets``, the version, which are
            export's own.

    Returns:
        The report: files, engine, largest errors, accuracies; ``str`` of it is to be read.

    Raises:
        ValueError: an argument that doesn't fit, a missing package (``icnets[export]``), a network that can't be
            exported or whose artifact isn't equal to it.
        TypeError: an example or data that aren't tensors.
        FileNotFoundError: the folder doesn't exist.

    Example:
        >>> import icnets, tempfile, torch
        >>> model = torch.nn.Sequential(icnets.ICConv2d(3, 4, 3), torch.nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(model, f"{folder}/net.pt2", "torch-export", torch.zeros(1, 3, 8, 8))
        >>> report.max_relative_error < 1e-4
        True
    """
    path = Path(path)
    engine = require(format, int8)
    _check_path(path, format, engine)
    example = _example(model, example_input)
    calibration = labelled(() if calibration_data is None else calibration_data, CALIBRATION_IMAGES)
    evaluation = calibration if evaluation_data is None else labelled(evaluation_data)
    for x, _ in calibration + evaluation:
        if x.shape[1:] != example.shape[1:]:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}, those to export for {tuple(example.shape[1:])}")
    if int8 and not any(len(x) for x, _ in calibration):
        raise ValueError("int8 is calibrated on images, and there are none; give calibration_data")
    original = made_plain_(deepcopy(model).cpu().eval())
    reference, network = eager(original), _network(original, example, fuse)
    notes = _notes(example, fuse, int8, metadata)
    # What is lowered is exact in float32 alone: 8 bits would coarsen the sums s, for every channel at once.
    program = _program(network if int8 else _lowered(network, engine), example)
    tests = _tests(example, [x for x, _ in evaluation])
    int8_parity: tuple[Parity, ...] = ()
    agreed = None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        artifact = Path(folder, "float32", path.name)
        artifact.parent.mkdir()
        engine.write(program, artifact, notes)
        parity = _prove(reference, engine.read(artifact), tests, format, tolerance)
        if int8:
            quantized = Path(folder, path.name)
            to_onnx.quantize(artifact, quantized, [x for x, _ in calibration], notes)
            artifact, runner = quantized, engine.read(quantized)
            # Noise is outside of the range that was calibrated, so how far int8 is off on it says nothing.
            int8_parity = tuple(compare(reference, runner, name, x) for name, x in tests if name == "real")
            agreed = agreement(reference, runner, evaluation)
            if agreed is not None and not agreed.loss <= max_loss:
                what = f"int8 loses {100 * agreed.loss:.2f} pp, more than the {100 * max_loss:g} allowed ({agreed})"
                raise ValueError(f"{what}: it isn't kept; calibrate on more representative images, or allow more")
        size = _place(artifact, path, engine)
    return ExportReport(path, format, engine.name, size, fuse, tolerance, parity, int8, int8_parity, agreed)


def runner_of(model: nn.Module, example: Tensor, format: str) -> Runner:
    """The deployed form of ``model`` in the engine of a format, as ``export`` would write it, without the proof.

    Raises ValueError for a missing package, and a network that can't be exported.
    """
    engine = require(format, int8=False)
    network = _network(made_plain_(deepcopy(model).cpu().eval()), example.cpu(), fuse=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"network{engine.suffix}")
        engine.write(_program(_lowered(network, engine), _example(network, example)), path, {})
        return engine.read(path)


# Arguments.


def _check_path(path: Path, format: str, engine: Engine) -> None:
    if path.suffix != engine.suffix:
        raise ValueError(f"path is {path}; for the format {format} it must end in {engine.suffix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: the folder {path.parent} doesn't exist; create it first")


def _example(model: nn.Module, given: Tensor | None) -> Tensor:
    """Two images of the shape to export, of normal noise: at a batch of 1 the exporter might fix it."""
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if p.is_floating_point() and p.dtype != torch.float32:
            raise ValueError(f"{name} is {p.dtype}; export takes float32 networks: model.float()")
    if given is None:
        shape = own_input_size(model)
        if shape is None:
            raise ValueError("the network doesn't say how large its input is; give example_input")
    elif not isinstance(given, Tensor):
        raise TypeError(f"example_input is a {type(given).__name__}; it must be a tensor (N, C, *L)")
    elif given.dim() < 2 or not given.is_floating_point():
        raise ValueError(f"example_input is {given.dtype} {tuple(given.shape)}; it must be a float32 batch (N, C, *L)")
    else:
        shape = tuple(given.shape[1:])
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


# The network and its program.


def _network(original: nn.Module, example: Tensor, fuse: bool) -> nn.Module:
    try:
        eager(original)(example)
    except (RuntimeError, AssertionError, TypeError) as error:
        what = f"{type(original).__name__} can't take a batch of shape {tuple(example.shape)}"
        raise ValueError(f"{what}: {first_line(error)}; give another example_input") from error
    network: nn.Module = deepcopy(original)
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            write_out_(module)  # engines take no single number for all dimensions
    if not fuse:
        return network
    try:
        fuse_(network, example)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"the network can't be fused: {first_line(error)}; or export it unfused") from error
    return network


def _lowered(network: nn.Module, engine: Engine) -> nn.Module:
    return network if engine.signs_by_convolution is None else lower_(network, engine.signs_by_convolution)


def _program(network: nn.Module, example: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        # torch.export raises whatever the network's code runs into; all of it means that this network can't be taken.
        raise ValueError(f"torch.export can't take {type(network).__name__}: {first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would carry the paths of this machine into the artifact
    return program


def _notes(example: Tensor, fuse: bool, int8: bool, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    from icnets import __version__

    own = {"input_size": list(example.shape[1:]), "fused": fuse, "int8": int8, "icnets": __version__}
    if taken := own.keys() & (metadata or {}).keys():
        raise ValueError(f"metadata has {', '.join(sorted(taken))}, which export writes itself; leave it out")
    try:
        return {key: v if isinstance(v, str) else json.dumps(v) for key, v in {**(metadata or {}), **own}.items()}
    except TypeError as error:
        raise ValueError(f"metadata must be plain data: {error}") from None


# Proof.


def _tests(example: Tensor, images: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tests = [("random", torch.randn(n, *example.shape[1:], generator=generator)) for n in BATCHES]
    if images:
        tests += [("real", torch.cat(list(images))[:n]) for n in BATCHES]
    return tests


def _prove(
    reference: Runner, artifact: Runner, tests: Sequence[tuple[str, Tensor]], format: str, tolerance: float
) -> tuple[Parity, ...]:
    parity = tuple(compare(reference, artifact, name, x) for name, x in tests)
    worst = max(parity, key=lambda found: found.relative)
    if not worst.relative <= tolerance:
        images = counted(worst.batch, f"{worst.inputs} image")
        found = f"{worst.absolute:.2g}, {worst.relative:.2g} of the output's range, on {images}"
        what = f"the {format} artifact differs from the network by {found}; allowed is {tolerance:g}: it isn't kept"
        raise ValueError(f"{what} (of an untrained deep network, whose float32 is unsteady, it would be the rounding)")
    return parity


def _place(artifact: Path, path: Path, engine: Engine) -> int:
    """Moves the artifact to ``path``, what belongs to it first; returns its size in bytes."""
    size = 0
    for suffix in (*engine.companions, engine.suffix):
        part = artifact.with_suffix(suffix)
        size += part.stat().st_size
        move_into_place(part, path.with_suffix(suffix))
    return size
