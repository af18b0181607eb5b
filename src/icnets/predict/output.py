"""Predictions as CSV or JSON, written as they come: a file is whole or not there."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from icnets.predict.inference import Prediction
from icnets.predict.paths import written
from icnets.support.files import atomic_write

__all__ = ["FORMATS", "Writer", "writing"]

FORMATS = ("csv", "json")


class Writer(Protocol):
    """Takes predictions one by one."""

    def write(self, prediction: Prediction) -> None: ...

    def end(self) -> None: ...


@contextmanager
def writing(
    out: Path | None, form: str, *, top_k: int, names: Sequence[str] | None, about: Mapping[str, Any]
) -> Iterator[Writer]:
    """A writer to the file ``out``, which appears when the block ends, or to standard output (None).

    Args:
        form: csv or json.
        top_k: classes of each prediction.
        names: of the classes, by index.
        about: plain values that JSON begins with.
    """
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):  # whatever the terminal's encoding: names aren't lost to it
            sys.stdout.reconfigure(encoding="utf-8")
        yield from _to(sys.stdout, form, top_k, names, about)
        return
    with atomic_write(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        yield from _to(file, form, top_k, names, about)


def _to(file: TextIO, form: str, top_k: int, names: Sequence[str] | None, about: Mapping[str, Any]) -> Iterator[Writer]:
    writer = _Csv(file, top_k, names) if form == "csv" else _Json(file, names, about)
    yield writer
    writer.end()
    file.flush()


def _number(probability: float) -> str:
    return f"{probability:.9g}"  # of float32, to the bit


class _Csv:
    """path, then class, name and probability of each rank, then error; fields with commas or line breaks are quoted."""

    def __init__(self, file: TextIO, top_k: int, names: Sequence[str] | None) -> None:
        self.writer = csv.writer(file, lineterminator="\n")
        self.top_k, self.names = top_k, names
        ranks = [f"{column}_{rank}" for rank in range(1, top_k + 1) for column in ("class", "name", "probability")]
        self.writer.writerow(["path", *ranks, "error"])

    def write(self, prediction: Prediction) -> None:
        cells: list[object] = []
        for index, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            cells += [index, "" if self.names is None else self.names[index], _number(probability)]
        cells += [""] * (3 * self.top_k - len(cells))
        self.writer.writerow([written(prediction.path), *cells, prediction.error or ""])

    def end(self) -> None:
        pass


class _Json:
    """An object: what it begins with, then ``predictions``, one a line, and at last the number of errors."""

    def __init__(self, file: TextIO, names: Sequence[str] | None, about: Mapping[str, Any]) -> None:
        self.file, self.names = file, names
        self.count = self.errors = 0
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
        file.write("{\n" + head + ' "predictions": [')

    def write(self, prediction: Prediction) -> None:
        classes = []
        for index, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            name = None if self.names is None else self.names[index]
            classes.append({"class": index, "name": name, "probability": float(_number(probability))})
        line = json.dumps({"path": written(prediction.path), "classes": classes, "error": prediction.error})
        self.file.write(f"{',' if self.count else ''}\n  {line}")
        self.count += 1
        self.errors += prediction.error is not None

    def end(self) -> None:
        self.file.write(f'\n ],\n "images": {self.count},\n "errors": {self.errors}\n}}\n')
