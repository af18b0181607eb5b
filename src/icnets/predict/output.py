"""Write predictions as CSV, as they come, or as JSON."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from icnets.data.image_files import written
from icnets.predict.inference import Prediction


def _ranked(prediction: Prediction, names: Sequence[str] | None) -> list[tuple[int, str | None, str]]:
    """Class, name and probability of each rank; the probability has all digits of float32."""
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return [(index, None if names is None else names[index], f"{value:.9g}") for index, value in pairs]


def write_csv(file: TextIO, predictions: Iterable[Prediction], top_k: int, names: Sequence[str] | None) -> None:
    """Path, then class, name and probability of each rank, then the error."""
    writer = csv.writer(file, lineterminator="\n")
    ranks = [f"{column}_{rank}" for rank in range(1, top_k + 1) for column in ("class", "name", "probability")]
    writer.writerow(["path", *ranks, "error"])
    for prediction in predictions:
        cells = [cell for rank in _ranked(prediction, names) for cell in rank] or [""] * 3 * top_k
        writer.writerow([written(prediction.path), *cells, prediction.error or ""])


def write_json(
    file: TextIO, predictions: Iterable[Prediction], names: Sequence[str] | None, about: Mapping[str, Any]
) -> None:
    """An object: what ``about`` holds, then ``predictions``, and at last the numbers of images and of errors."""
    found: list[dict[str, Any]] = []
    for prediction in predictions:
        classes = [{"class": i, "name": name, "probability": float(p)} for i, name, p in _ranked(prediction, names)]
        found.append({"path": written(prediction.path), "classes": classes, "error": prediction.error})
    errors = sum(entry["error"] is not None for entry in found)
    json.dump({**about, "predictions": found, "images": len(found), "errors": errors}, file, indent=1)
    file.write("\n")
