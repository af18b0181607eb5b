"""Predict image files in order: one that can't be read is a prediction too, with the reason."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from icnets.data.folders import find_images
from icnets.data.image_files import reason, written
from icnets.data.protocol import VIEW, EvaluationTransform
from icnets.open_network import OpenedNetwork
from icnets.support.text import first_line, printable


class Prediction(NamedTuple):
    """The most probable classes of an image, the most probable first; or the ``error`` for which there are none.

    ``image``: (C, H, W), as the network sees it; None where the file can't be read.
    """

    path: Path
    classes: list[int]
    probabilities: list[float]
    image: Tensor | None
    error: str | None


# How images become the network's input.


def evaluation_of(name: str, opened: OpenedNetwork, given: Mapping[str, Any]) -> tuple[EvaluationTransform, str]:
    """The transform of the network's evaluation, and a line that says what it does and which of it is only a default.

    Each of ``image_size``, ``in_chans``, ``mean``, ``std``, ``crop_pct`` and ``interpolation`` is what was ``given``
    (None: not given), else what is noted, else the network's own size, or the default of ``icnets fit``.

    Raises:
        ValueError: an argument out of its range, or an unknown size.
    """
    known = {key: value for key in VIEW if (value := getattr(opened.notes, key)) is not None}
    wanted = {key: value for key in VIEW if (value := given.get(key)) is not None}
    channels, side = opened.image_shape
    values: dict[str, Any] = {"in_chans": channels, "image_size": side, **known, **wanted}
    if values["image_size"] is None:
        raise ValueError(f"{name} doesn't say how large its images are; give --image-size N")
    transform = EvaluationTransform(**values)
    return transform, _described(name, transform, [key for key in VIEW if key not in {**known, **wanted}])


def _described(name: str, view: EvaluationTransform, assumed: list[str]) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (view.mean, view.std))
    text = f"images: {view.describe()}, {'grey, ' if view.in_chans == 1 else ''}mean {mean}, std {std}"
    options = ", ".join("--" + key.replace("_", "-") for key in assumed)
    if not options:
        return text
    return f"{text}; {name} doesn't say {options}: these are defaults, give them if it was trained otherwise"


# The network.


def _logits(name: str, network: nn.Module, x: Tensor, device: str) -> Tensor:
    """Logits (N, classes), float32 on the CPU, of images (N, C, H, W)."""
    with torch.no_grad():
        output: Any = network(x.to(device))
    if not isinstance(output, Tensor):
        found = f"{len(output)} outputs" if isinstance(output, list | tuple) else f"a {type(output).__name__}"
        raise ValueError(f"{name} gives {found}; predict needs one, logits (N, classes)")
    return output.float().cpu()


def classes_of(name: str, network: nn.Module, view: EvaluationTransform, device: str) -> int:
    """The number of classes, found by a trial.

    Raises:
        ValueError: the network can't take such images, or its output isn't one row of logits per image.
    """
    shape = (view.in_chans, view.image_size, view.image_size)
    try:
        logits = _logits(name, network, torch.zeros(2, *shape), device)
    except ValueError:
        raise
    except Exception as error:  # engines have errors of their own
        what = f"{name} can't take images of {'×'.join(map(str, shape))}: {first_line(error)}"
        raise ValueError(f"{what}; give --image-size, --in-chans") from error
    if logits.dim() != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name} gives {tuple(logits.shape)} for 2 images; predict needs logits (2, classes)")
    return logits.shape[1]


# The files.


def find_paths(given: Sequence[str]) -> list[Path]:
    """The image files that ``given`` names, in its order; a folder's are sorted.

    A file is taken as an image whatever its extension; folders are searched to any depth for those that training reads.

    Raises:
        ValueError: something that isn't there, or that holds no images.
    """
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if not text.strip():
            raise ValueError("one of the paths is empty; give image files or folders of them")
        if path.is_dir():
            found += find_images(path, classes=False).paths
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no file or folder {shown(path)}; check the path")
    return found


def shown(path: Path | str) -> str:
    """A path as text for a terminal, which it can't command: what isn't printable is escaped."""
    return printable(written(path))


class _Readable(Dataset[Tensor | str]):
    """Each file's image, or the reason why it can't be read."""

    def __init__(self, paths: Sequence[Path], view: EvaluationTransform) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.view.read(self.paths[index])
        except Exception as error:  # decoders raise whatever they stumble over
            return reason(error)


def predictions(
    name: str,
    network: nn.Module,
    view: EvaluationTransform,
    paths: Sequence[Path],
    *,
    top_k: int,
    batch_size: int,
    workers: int = 0,
    device: str = "cpu",
) -> Iterator[Prediction]:
    """Yield the prediction of each of ``paths``, in their order.

    Args:
        name: the network's, for messages.
        network: in eval mode, on its device.
        view: how an image becomes its input.
        paths: image files.
        top_k: classes of each image, at most as many as there are.
        batch_size: files at a time.
        workers: processes that read them; 0 reads them in this one.
        device: the network's.

    Raises:
        ValueError: a process that reads has died, or a batch is too large for the device's memory.
    """
    remaining = iter(paths)
    try:
        for batch in DataLoader(_Readable(paths, view), batch_size, num_workers=workers, collate_fn=list):
            images = [image for image in batch if isinstance(image, Tensor)]
            logits = _logits(name, network, torch.stack(images), device) if images else torch.empty(0, top_k)
            best = logits.softmax(dim=1).topk(top_k)
            yield from _predicted(list(islice(remaining, len(batch))), batch, best)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"--batch-size {batch_size} is too large for the memory of the device; lower it") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError("a process that reads images has died; try --workers 0, which shows where") from error


def _predicted(paths: Sequence[Path], batch: Sequence[Tensor | str], best: Any) -> Iterator[Prediction]:
    """Predictions of consecutive files; ``best`` has a row for each that is an image."""
    rows = zip(best.values.tolist(), best.indices.tolist(), best.values.isfinite().all(1).tolist(), strict=True)
    for path, image in zip(paths, batch, strict=True):
        if isinstance(image, str):
            yield Prediction(path, [], [], None, image)
            continue
        probabilities, classes, finite = next(rows)
        if finite:
            yield Prediction(path, classes, probabilities, image, None)
        else:
            yield Prediction(path, [], [], image, "the network's output is not a number")
