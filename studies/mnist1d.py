"""MNIST-1D (arXiv 2011.14439): ten classes of noisy signals of 40 values, drawn anew for each seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studies.tensors import Splits, TensorData, cached

__all__ = ["MNIST1D"]


class MNIST1D(TensorData):
    """Signals ``(1, 40)`` from the package ``mnist1d`` by its own defaults; training and test are independent draws.

    Args:
        train: number of training signals (the package's own set has 4,000).
        val: number of signals watched during training.
        test: number of signals that the error is measured on; many, so that the test set adds little noise.
        cache: see :class:`studies.tensors.TensorData`.
        **options: see :class:`studies.tensors.TensorData`.
    """

    def __init__(
        self, train: int = 4000, val: int = 2000, test: int = 10_000, cache: Path | None = None, **options: Any
    ) -> None:
        super().__init__(cache=cache, **options)
        for name, value in (("train", train), ("val", val), ("test", test)):
            if value < 10:
                raise ValueError(f"{name} is {value}; ten classes need at least 10 signals")
        self.sizes = (train, val, test)

    def splits(self) -> Splits:
        name = f"mnist1d-{'-'.join(map(str, self.sizes))}-seed{self.seed}"
        arrays = cached(self.cache, name, lambda: _draw(self.sizes, self.seed))
        x = torch.from_numpy(arrays["x"]).unsqueeze(1)
        y = torch.from_numpy(arrays["y"])
        train, val, test = zip(x.split(self.sizes), y.split(self.sizes), strict=True)
        return Splits(train, val, test, [str(digit) for digit in range(10)])


def _draw(sizes: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    # A whole number of signals of each class, of which the last few are left out.
    total = sum(sizes)
    args.num_samples, args.train_split, args.seed = -(-total // 10) * 10, 1.0, seed
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the package draws from numpy's global state
    try:
        drawn = make_dataset(args)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return {"x": drawn["x"][:total].astype(np.float32), "y": drawn["y"][:total].astype(np.int64)}
