"""Files in, predictions out, in order: what can't be read is a prediction too, with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from icnets.data.data_module import ImageData
from icnets.data.image_files import reason
from icnets.data.images import ImageFiles, as_is
from icnets.predict.models import Model

__all__ = ["Batch", "Prediction", "predictions"]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first; or the ``error`` for which there are none.

    ``read``: whether the image was, and the error is the network's.
    """

    path: Path
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    read: bool = False


class Batch(NamedTuple):
    """Predictions of consecutive files; images (N, C, H, W) of those without an error, as the network sees them."""

    predictions: list[Prediction]
    images: Tensor


class _Read(NamedTuple):
    indices: list[int]
    images: Tensor
    errors: dict[int, str]


class _Files(Dataset[_Read]):
    """Files read a batch at a time."""

    def __init__(self, files: ImageFiles, paths: Sequence[Path]) -> None:
        self.files, self.paths = files, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> _Read:
        images: list[Tensor] = []
        errors: dict[int, str] = {}
        for index in indices:
            try:
                images.append(self.files.evaluated(index))
            except Exception as error:  # decoders raise whatever they stumble over
                errors[index] = reason(error)
        return _Read(indices, torch.stack(images) if images else torch.empty(0), errors)


def predictions(
    model: Model, data: ImageData, paths: Sequence[Path], *, top_k: int, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """The predictions of ``paths``, in their order, as the network's evaluation would have them.

    Args:
        model: whose logits these are.
        data: whose evaluation transform the images go through.
        top_k: classes of each image, at most as many as there are.
        batch_size: files at a time.
        workers: processes that read them; 0 reads them in this one.

    Raises:
        ValueError: a process that reads has died, or a batch is too large for the device's memory.
    """
    loader = DataLoader(
        _Files(data.image_files(paths), paths),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=as_is,
    )
    try:
        for read in loader:
            yield _predicted(model, paths, read, top_k)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"--batch-size {batch_size} is too large for the memory of the device; lower it") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError("a process that reads images has died; try --workers 0, which shows where") from error


def _predicted(model: Model, paths: Sequence[Path], read: _Read, top_k: int) -> Batch:
    errors, images = dict(read.errors), read.images
    found: dict[int, Prediction] = {}
    readable = [index for index in read.indices if index not in errors]
    if readable:
        probabilities, classes = model.logits(images).softmax(dim=1).topk(top_k)
        finite = probabilities.isfinite().all(1)
        for row, index in enumerate(readable):
            if finite[row]:
                found[index] = Prediction(
                    paths[index], tuple(classes[row].tolist()), tuple(probabilities[row].tolist())
                )
            else:
                found[index] = Prediction(paths[index], error="the network's output is not a number", read=True)
        images = images[finite]
    rows = [found[i] if i in found else Prediction(paths[i], error=errors[i]) for i in read.indices]
    return Batch(rows, images)
