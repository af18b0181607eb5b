"""A tiny network with its checkpoint, and the plain loop that predictions are compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from icnets import create_model, ic_parameters, save

CLASSES = ["ant", "bee", "cow, brown"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NOTES = {
    "class_names": '["ant", "bee", "cow, brown"]',
    "mean": ",".join(map(str, MEAN)),
    "std": ",".join(map(str, STD)),
    "image_size": "32",
    "in_chans": "3",
    "crop_pct": "0.8",
    "interpolation": "bicubic",
}


def network() -> nn.Module:
    """An IC network whose collisions do something, and whose answers differ from image to image."""
    torch.manual_seed(1)
    model = create_model("ic_resnet18", num_classes=3, channels=(8, 8, 16, 16), layers=(1, 1, 1, 1))
    with torch.no_grad():
        for _, parameter in ic_parameters(model):
            parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
        model.fc.weight.mul_(6)
    return model.eval()


def checkpoint(path: Path, **changes: str | None) -> Path:
    """A checkpoint of :func:`network` with ``NOTES``, some of them changed or (None) left out."""
    notes = {key: value for key, value in {**NOTES, **changes}.items() if value is not None}
    save(network(), path, metadata=notes)
    return path


def plain_loop(model: nn.Module, paths: Sequence[Path]) -> Tensor:
    """Probabilities (N, 3), by torchvision's transforms."""
    transform = transforms.Compose(
        [
            transforms.Resize(40, interpolation=transforms.InterpolationMode.BICUBIC),  # 32 / 0.8
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(transform(image.convert("RGB")))
    with torch.no_grad():
        return torch.cat([model(x).softmax(1) for x in torch.stack(images).split(100)])
