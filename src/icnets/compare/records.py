"""Read what the folder of a comparison or of a training holds, as plain values."""

import csv
import json
from pathlib import Path
from typing import Any


def read_results(path: Path) -> dict[str, Any]:
    """The results.json of ``icnets compare``. Raises ValueError for anything but a JSON object."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no JSON object")
    return record


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's history.csv, one an epoch, each without its empty cells. Raises ValueError."""
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
