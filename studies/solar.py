"""Solar cells: 2,624 electroluminescence images, graded by how probably the cell is defective (package elpv-dataset).

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018; Deitsch et al., Solar Energy 185, 2019. Licence of the images: CC BY-NC-SA 4.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from icnets.data.folders import take
from studies.tensors import Splits, TensorData, cached

__all__ = ["SolarCells"]

_GRADES = 4  # defect probabilities 0, 1/3, 2/3, 1


class SolarCells(TensorData):
    """Grey images of cells in two classes: defective where the probability exceeds 0.5.

    Stratified k-fold cross-validation by grade and kind of cell: seed = fold + k · repetition, so that k seeds from a
    multiple of k on are one whole cross-validation, and the next k another one with other folds.

    Args:
        image_size: pixels; the images have 300.
        folds: k.
        val_fraction: part of the training folds that is watched instead of trained on.
        limit: use only so many of the images, drawn by grade; None: all.
        cache: see :class:`studies.tensors.TensorData`.
        **options: see :class:`studies.tensors.TensorData`.
    """

    def __init__(
        self,
        image_size: int = 64,
        folds: int = 5,
        val_fraction: float = 0.1,
        limit: int | None = None,
        cache: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(cache=cache, **options)
        for name, value, low in (("image_size", image_size, 8), ("folds", folds, 2), ("limit", limit, 100)):
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")
        if not 0 < val_fraction < 0.5:
            raise ValueError(f"val_fraction is {val_fraction}; it must lie between 0 and 0.5")
        self.image_size, self.folds, self.val_fraction, self.limit = image_size, folds, val_fraction, limit

    def splits(self) -> Splits:
        from sklearn.model_selection import StratifiedKFold

        arrays = cached(self.cache, f"solar-{self.image_size}", lambda: _read(self.image_size))
        images, grades = torch.from_numpy(arrays["images"]), arrays["grades"] * 2 + arrays["mono"]
        if self.limit is not None:
            chosen, _ = take(grades.tolist(), self.limit, 0)
            images, grades = images[chosen], grades[chosen]
        target = torch.from_numpy(grades // 2 > (_GRADES - 1) / 2).long()
        repetition, fold = divmod(self.seed, self.folds)
        parts = StratifiedKFold(self.folds, shuffle=True, random_state=repetition).split(grades, grades)
        rest, test = list(parts)[fold]
        val, train = take(grades[rest].tolist(), round(self.val_fraction * len(rest)), self.seed)
        indices = {"train": rest[train], "val": rest[val], "test": test}
        split = {name: (images[own], target[own]) for name, own in indices.items()}
        return Splits(**split, class_names=["functional", "defective"])


def _read(size: int) -> dict[str, np.ndarray]:
    from elpv_dataset.utils import load_dataset

    images, probabilities, kinds = load_dataset()
    x = torch.from_numpy(images).unsqueeze(1).float()
    small = torch.cat([F.interpolate(part, size=size, mode="bilinear", antialias=True) for part in x.split(256)])
    grades = np.rint(probabilities * (_GRADES - 1)).astype(np.int64)
    mono = (kinds == "mono").astype(np.int64)
    return {"images": small.round().clamp(0, 255).byte().numpy(), "grades": grades, "mono": mono}
