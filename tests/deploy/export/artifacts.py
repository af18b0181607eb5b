"""What the tests of export write, and how they read it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from icnets import ICConv2d, create_model, ic_parameters
from icnets.deploy.export.engines import ENGINES

SUFFIX = {name: engine.suffix for name, engine in ENGINES.items()}


def needs(format: str) -> None:
    for package in ENGINES[format].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")


def randomised(model: nn.Module, size: int = 64) -> nn.Module:
    """Batch norms and collisions as a training leaves them, both signs included, and a signal that keeps its size.

    ``size``: of the images for which a network of timm's gets its statistics.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * normal(module.weight))
                module.weight[::5] *= -1
                module.bias.copy_(0.2 * normal(module.bias))
                module.momentum = 1.0
        for _, parameter in ic_parameters(model):
            parameter.add_(0.3 * normal(parameter))
        # The statistics that belong to these weights: without them a deep network's output overflows or dies.
        if hasattr(model, "pretrained_cfg"):
            channels = model.pretrained_cfg["input_size"][0]
            model.train()(torch.randn(32, channels, size, size, generator=generator))
    return model.eval()


def tiny(classes: int = 3) -> nn.Module:
    """Dense, grouped, depthwise and strided units; with and without batch norm, bias and a rectifier behind them."""
    return nn.Sequential(
        ICConv2d(2, 8, 3, padding=1, bias=False, collision_weight=0.05),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        ICConv2d(8, 8, 3, stride=2, padding=1, groups=2, collision_weight=-0.1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        ICConv2d(8, 8, 3, padding=1, groups=8, gain=0.5, collision_weight=0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


def small_network(name: str) -> nn.Module:
    sizes: dict[str, Any] = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)} if name == "ic_resnet18" else {}
    return randomised(create_model(name, num_classes=5, **sizes))


IMAGE = torch.zeros(1, 2, 12, 12)


def load_artifact(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """The artifact as a user of the engine loads it, apart from the library's own way."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
    if format == "openvino":
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())
    return torch.export.load(path).module()


def load_outputs(path: Path, format: str) -> Callable[[Tensor], list[Tensor]]:
    """As :func:`load_artifact`, for networks of several outputs."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return lambda x: [torch.from_numpy(part) for part in session.run(None, {"input": x.numpy()})]
    if format == "openvino":
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: [torch.from_numpy(part.copy()) for part in compiled(x.numpy()).values()]
    run = load_artifact(path, format)
    return lambda x: [part for part in tree_leaves(run(x)) if isinstance(part, Tensor)]


def assert_equal_outputs(model: nn.Module, path: Path, format: str, shape: tuple[int, ...]) -> None:
    run = load_artifact(path, format)
    for batch in (1, 7, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected, found = model(x), run(x)
        assert found.shape == expected.shape
        span = float(expected.max() - expected.min())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * span)
