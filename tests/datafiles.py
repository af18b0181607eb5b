"""Made-up data in the formats that the data sets have."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_cifar(root: Path, classes: int) -> None:
    """A made-up set in CIFAR's own format, five images of each class in each file."""
    rng = np.random.default_rng(0)
    label, folder = ("labels", "cifar-10-batches-py") if classes == 10 else ("fine_labels", "cifar-100-python")
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    (root / folder).mkdir()
    for name in names:
        labels = np.repeat(np.arange(classes), 5)
        data = rng.integers(0, 256, (len(labels), 3, 1024)) // 2
        data[:, 0] += labels[:, None] * (128 // classes)
        entry = {"data": data.reshape(len(labels), 3072).astype(np.uint8), label: labels.tolist()}
        (root / folder / name).write_bytes(pickle.dumps(entry))
    meta = {"label_names" if classes == 10 else "fine_label_names": [f"class {i}" for i in range(classes)]}
    (root / folder / ("batches.meta" if classes == 10 else "meta")).write_bytes(pickle.dumps(meta))


def write_folder(root: Path, splits: Sequence[str]) -> None:
    """A folder per split, in it one per class, with names and images as ImageNet's; six images each."""
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("n01440764", "n02102040"):
            (root / split / kind).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{i}.JPEG")
