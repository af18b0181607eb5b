"""For tests: photographs of solar cells (package elpv-dataset, CC BY-NC-SA 4.0), and a network that knows ImageNet."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import demo_photos


def write_cells(folder: Path, size: int, *, train: int, val: int) -> Path:
    """Writes train/ and val/ with so many images of each of two classes: grey, (size, size)."""
    pytest.importorskip("elpv_dataset")
    for name, sources in demo_photos.chosen(train, val).items():
        part, label = name.split("/")
        target = folder / {"train": "train", "test": "val"}[part] / label
        target.mkdir(parents=True, exist_ok=True)
        for source in sources:
            with Image.open(source) as image:
                image.resize((size, size), Image.Resampling.BILINEAR).save(target / source.name)
    return folder


def write_lite0(path: Path) -> Path:
    """EfficientNet-Lite0 with what ImageNet taught it, and a classifier of two classes that knows nothing yet."""
    state = demo_photos.weights()
    generator = torch.Generator().manual_seed(0)
    state["classifier.weight"] = 0.01 * torch.randn(2, state["classifier.weight"].shape[1], generator=generator)
    state["classifier.bias"] = torch.zeros(2)
    save_file(state, path)
    return path
