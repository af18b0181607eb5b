"""The architectures there are: timm's registry, torchvision's, segmentation-models-pytorch's, and modules in a folder.

Each is a case: where it is from, its family, its name. Nothing here depends on which one it is, only on where it is
from and, for torchvision, on the task that its package names.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SOURCES", "Case", "Prepared", "build", "cases", "prepare"]

_CLASSES = 5
_BATCH = 2
_SIDES = (64, 96, 128, 160, 224, 256, 384, 512)  # of an image, the smallest that works is taken
_VIDEO = ((8, 64), (16, 64), (16, 112), (16, 224), (32, 224))  # frames and side


@dataclass(frozen=True)
class Case:
    """One architecture: ``source`` is one of :data:`SOURCES`, ``task`` what it is fed and gives."""

    source: str
    family: str
    name: str
    task: str = "images"

    @property
    def id(self) -> str:
        return f"{self.source}/{self.name}"


@dataclass
class Prepared:
    """A network with what it takes: the arguments of ``forward`` in eval mode, and those in train mode."""

    model: nn.Module
    args: tuple[Any, ...]
    train_args: tuple[Any, ...]
    size: list[int]


# -- timm ------------------------------------------------------------------------------------------------------------


def _timm_cases(_: Path | None) -> Iterator[Case]:
    import timm

    for name in timm.list_models():
        package, _dot, family = timm.models.model_entrypoint(name).__module__.rpartition(".")
        if package == "timm.models":  # others, ours too, register theirs with timm
            yield Case("timm", family, name)


def _timm_model(case: Case) -> nn.Module:
    import timm

    return timm.create_model(case.name)


# -- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision_cases(_: Path | None) -> Iterator[Case]:
    models: Any = importlib.import_module("torchvision.models")
    for name in models.list_models():
        package: str = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        task, _dot, family = package.rpartition(".")
        if task != "quantization":  # the same networks, for int8
            yield Case("torchvision", family, name, task or "images")


def _torchvision_model(case: Case) -> nn.Module:
    models: Any = importlib.import_module("torchvision.models")
    own = {"weights_backbone": None} if case.task in ("detection", "segmentation") else {}
    model: nn.Module = models.get_model(case.name, weights=None, **own)
    if case.task == "detection":
        _make_small(model)
        model.double()  # rounding must not change which of two boxes is kept
    return model


def _make_small(model: nn.Module) -> None:
    """A detector that takes images as small as they come, looks at few places, and keeps boxes it doesn't believe in.

    Untrained, it would keep none, and there would be nothing to compare.
    """
    for module in model.modules():
        settings = module.__dict__
        if "score_thresh" in settings:
            settings["score_thresh"] = 0.0
        if {"min_size", "max_size"} <= settings.keys():
            settings |= {"min_size": (_SIDES[0],), "max_size": 2 * _SIDES[0]}
        for name in ("_pre_nms_top_n", "_post_nms_top_n"):
            if name in settings:
                settings[name] = {"training": 50, "testing": 50}
        for name in ("topk_candidates", "detections_per_img"):
            if name in settings:
                settings[name] = 50


# -- segmentation-models-pytorch -------------------------------------------------------------------------------------


def _smp_cases(_: Path | None) -> Iterator[Case]:
    import segmentation_models_pytorch as smp

    for decoder, model in smp.MODEL_ARCHITECTURES_MAPPING.items():
        own = inspect.signature(model).parameters["encoder_name"].default  # one of timm's where it takes no other
        for encoder in dict.fromkeys([own, *smp.encoders.get_encoder_names()]):
            yield Case("smp", decoder, f"{decoder}/{encoder}", "segmentation")


def _smp_model(case: Case) -> nn.Module:
    import segmentation_models_pytorch as smp

    decoder, _, encoder = case.name.partition("/")
    return smp.create_model(decoder, encoder, encoder_weights=None, classes=_CLASSES)


# -- a folder of modules ---------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    name = f"icnets_coverage_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _folder_cases(folder: Path | None) -> Iterator[Case]:
    """Classes of modules in the folder's files that have a ``shape``, that of the input which they take."""
    for path in sorted(folder.glob("*.py")) if folder is not None else ():
        for name, value in vars(_load(path)).items():
            if isinstance(value, type) and issubclass(value, nn.Module) and "shape" in vars(value):
                yield Case("folder", path.stem, f"{path}:{name}", "given")


def _folder_model(case: Case) -> nn.Module:
    path, _, name = case.name.rpartition(":")
    return getattr(_load(Path(path)), name)()


SOURCES: dict[str, tuple[Callable[[Path | None], Iterator[Case]], Callable[[Case], nn.Module]]] = {
    "timm": (_timm_cases, _timm_model),
    "torchvision": (_torchvision_cases, _torchvision_model),
    "smp": (_smp_cases, _smp_model),
    "folder": (_folder_cases, _folder_model),
}


def cases(sources: list[str], folder: Path | None = None, only: str = "*") -> list[Case]:
    """The cases of ``sources`` whose id ("timm/resnet50") fits the pattern ``only``."""
    return [case for source in sources for case in SOURCES[source][0](folder) if fnmatch(case.id, only)]


def build(case: Case) -> nn.Module:
    """The network of a case with random weights, in train mode."""
    torch.manual_seed(0)
    return SOURCES[case.source][1](case)


# -- what it is fed --------------------------------------------------------------------------------------------------


def _image(side: int, channels: int = 3) -> Tensor:
    return torch.rand(_BATCH, channels, side, side)


def _boxes(side: int, like: Tensor) -> list[dict[str, Tensor]]:
    box = torch.tensor([[side * 0.2, side * 0.2, side * 0.8, side * 0.7]]).to(like)
    target = {
        "boxes": box,
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "keypoints": torch.tensor([[[side * 0.5, side * 0.5, 1.0]] * 17]),  # in single precision whatever the network
    }
    return [target] * _BATCH


def _inputs(case: Case, model: nn.Module) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], list[int]]]:
    """Arguments to try, from small to large: for eval mode, for train mode, and the input's size."""
    if case.task == "given":
        x = torch.randn(getattr(type(model), "shape"))  # noqa: B009
        yield (x,), (x,), list(x.shape[1:])
        return
    if case.task == "video":
        for frames, side in _VIDEO:
            x = torch.rand(1, 3, frames, side, side)  # clips are large
            yield (x,), (x,), list(x.shape[1:])
        return
    for side, channels in _sides(model):
        x = _image(side, channels).to(next(model.parameters()).dtype)
        args: tuple[Any, ...] = (x,)
        train_args = args
        if case.task == "detection":
            args, train_args = (list(x),), (list(x), _boxes(side, x))
        elif case.task == "optical_flow":
            args = train_args = (x, _image(side, channels))
        yield args, train_args, list(x.shape[1:])


def _sides(model: nn.Module) -> list[tuple[int, int]]:
    """Sides of images to try, with their channels: what timm's networks say of themselves goes first."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not cfg.get("input_size"):
        return [(side, 3) for side in _SIDES]
    channels, own, _ = cfg["input_size"]
    least = (cfg.get("min_input_size") or (channels, 0, 0))[1]
    sides = [] if cfg.get("fixed_input_size") else [s for s in _SIDES if least <= s < own]
    return [(side, channels) for side in [*sides, own]]


def _works(model: nn.Module, args: tuple[Any, ...], train_args: tuple[Any, ...]) -> None:
    with torch.no_grad():
        model.eval()(*args)
        state = copy.deepcopy(model.state_dict())  # with the versions that some modules ask for
        model.train()(*train_args)
        model.load_state_dict(state)


def prepare(case: Case) -> Prepared:
    """The basic network of a case, in eval mode, with the smallest input that it takes in either mode.

    Raises whatever the network raises where it takes none.
    """
    model = build(case)
    last: Exception | None = None
    for args, train_args, size in _inputs(case, model):
        try:
            _works(model, args, train_args)
        except Exception as error:  # too small, as a rule; networks say so in every way
            last = error
            continue
        return Prepared(model.eval(), args, train_args, size)
    raise RuntimeError(f"the basic network takes no input that was tried: {last}")
