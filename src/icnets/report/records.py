"""What the folders of runs hold: a comparison's results.json, or the history of a single training."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icnets.compare.comparison_table import Cost, Reached, Row
from icnets.compare.methods import ComparedTraining, Method, Network, Settings, WeakDistillation
from icnets.compare.runs import Epoch, Run
from icnets.compare.statistics import Interval
from icnets.convert.surgery import ICConfig
from icnets.distill.loss import DistillationSchedule
from icnets.profile.measure import Count, Latency
from icnets.support.text import first_line

__all__ = ["Comparison", "Training", "read"]

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """What ``icnets compare`` left in ``folder``. ``runs``: for each method its runs, in the order of the seeds."""

    folder: Path
    record: dict[str, Any]
    settings: Settings
    rows: list[Row]
    runs: dict[str, list[Run]]


@dataclass(frozen=True)
class Training:
    """What ``icnets fit`` left in ``folder``: a row of metrics for each epoch, and its options as YAML."""

    folder: Path
    history: list[dict[str, float]]
    config: str


def read(folder: Path) -> Comparison | Training:
    """The run in ``folder``.

    Raises:
        ValueError: there is no such folder, no run in it, or one that is damaged or of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the folder of a run, such as runs/demo")
    results, history = folder / "results.json", folder / "history.csv"
    if results.is_file():
        return _comparison(folder, results)
    if history.is_file():
        return _training(folder, history)
    raise ValueError(
        f"{folder} holds no run: neither results.json, which icnets compare writes at its end, nor history.csv of "
        "icnets fit"
    )


def _comparison(folder: Path, path: Path) -> Comparison:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        if schema != SCHEMA:
            raise ValueError(
                f"{path} has schema {schema}, and this version reads {SCHEMA}; make the report with its own"
            )
        settings = _settings(record["settings"], folder)
        runs: dict[str, list[Run]] = {method.name: [] for method in settings.methods}
        for run in record["runs"]:
            runs[run["method"]].append(Run(**{**run, "history": [Epoch(**epoch) for epoch in run["history"]]}))
        return Comparison(folder, record, settings, [_row(row) for row in record["methods"]], runs)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no record of icnets compare, or damaged: {first_line(error)}") from error


def _settings(record: dict[str, Any], folder: Path) -> Settings:
    wld = {**record["wld"], "schedule": DistillationSchedule(**record["wld"]["schedule"])}
    methods = [Method(**{**m, "ic": None if m["ic"] is None else ICConfig(**m["ic"])}) for m in record["methods"]]
    parts = {
        "methods": methods,
        "out": folder,  # wherever it is by now
        "network": Network(**record["network"]),
        "training": ComparedTraining(**record["training"]),
        "wld": WeakDistillation(**wld),
        "folder": None,
    }
    return Settings(**{**record, **parts})


def _row(record: dict[str, Any]) -> Row:
    cost = record["cost"]
    parts = {
        **{name: record[name] and Interval(**record[name]) for name in ("error", "to_basic", "to_control")},
        "agreement": record["agreement"] and tuple(record["agreement"]),
        "reached": Reached(**record["reached"]),
        "cost": Cost(Count(**cost["parameters"]), Count(**cost["macs"]), Latency(**cost["latency"])),
    }
    return Row(**{**record, **parts})


def _training(folder: Path, path: Path) -> Training:
    with open(path, newline="", encoding="utf-8") as file:
        try:
            history = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no history of icnets fit, or damaged: {first_line(error)}") from error
    if not history or "epoch" not in history[0]:
        raise ValueError(f"{path} has no epochs; a report needs a run with at least one finished epoch")
    config = folder / "config.yaml"
    return Training(folder, history, config.read_text(encoding="utf-8") if config.is_file() else "")
