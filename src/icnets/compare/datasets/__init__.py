"""The data of comparisons and studies by name; what needs a package imports it when it is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from icnets.data.tensors import TensorData

__all__ = ["DATASETS", "make_data"]

# kind: module and class. Every class takes seed; those that make or convert data, cache as well.
DATASETS = {
    "images": ("icnets.data.data_module", "ImageData"),
    "mnist1d": ("icnets.compare.datasets.mnist1d", "MNIST1D"),
    "solar": ("icnets.compare.datasets.solar", "SolarCells"),
    "glyphs": ("icnets.compare.datasets.glyphs", "Glyphs"),
    "cifar10": ("icnets.compare.datasets.cifar", "CIFAR10"),
    "cifar100": ("icnets.compare.datasets.cifar", "CIFAR100"),
}


def make_data(arguments: dict[str, Any], seed: int, cache: Path | None = None) -> Any:
    """A Lightning data module, its data found and checked.

    Args:
        arguments: ``kind``, one of :data:`DATASETS` ("images" if left out: scikit-learn's digits, or a folder), and
            the arguments of its class.
        seed: of splits or folds, order and augmentation.
        cache: folder for data that takes long to make.

    Raises:
        ValueError: an unknown kind, arguments it doesn't take, or data that can't be used.
    """
    rest = dict(arguments)
    kind = rest.pop("kind", "images")
    if kind not in DATASETS:
        raise ValueError(f"data.kind is {kind!r}; it must be one of {', '.join(DATASETS)}")
    module, name = DATASETS[kind]
    make: type[Any] = getattr(import_module(module), name)
    if cache is not None and issubclass(make, TensorData):
        rest["cache"] = cache
    try:
        data = make(**rest, seed=seed)
    except TypeError as error:
        raise ValueError(f"data of kind {kind} doesn't take these arguments: {error}") from error
    data.setup()
    return data
