"""What the folders of runs hold: a comparison's results.json, or the history of a single training."""

import csv
import json
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from icnets.compare.comparison import SCHEMA
from icnets.compare.comparison_table import Row
from icnets.compare.runs import Run
from icnets.compare.settings import Settings
from icnets.support.text import first_line


@dataclass(frozen=True)
class ComparisonFiles:
    """What ``icnets compare`` left in ``folder``. ``runs``: for each row its runs, in the order of the seeds."""

    folder: Path
    record: dict[str, Any]
    settings: Settings
    rows: list[Row]
    runs: dict[str, list[Run]]


@dataclass(frozen=True)
class FitFiles:
    """What ``icnets fit`` left in ``folder``: a row of metrics for each epoch, and its options as YAML."""

    folder: Path
    history: list[dict[str, float]]
    config: str


def rebuilt(kind: Any, value: Any) -> Any:
    """The object of type ``kind`` that ``value`` was made from by ``dataclasses.asdict`` and JSON.

    Example:
        >>> from icnets.compare.settings import Network
        >>> rebuilt(Network, {"name": "resnet50", "options": {}})
        Network(name='resnet50', options={}, before_norm=None)
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = {name: rebuilt(hints[name], value[name]) for name in value if name in hints}  # others are of the past
        return kind(**fields)  # type: ignore[operator]
    kinds = get_args(kind)
    if get_origin(kind) is list:
        return [rebuilt(kinds[0], entry) for entry in value]
    if get_origin(kind) is tuple:
        return tuple(value)
    inner = next((k for k in kinds if is_dataclass(k) or k is Path or get_origin(k) is tuple), None)
    if inner is not None and (isinstance(value, dict) or not is_dataclass(inner)):
        return None if value is None else rebuilt(inner, value)
    return Path(value) if kind is Path else value


def read_run(folder: Path) -> ComparisonFiles | FitFiles:
    """The comparison or the training in ``folder``.

    Raises:
        ValueError: there is no such folder, no run in it, or one that is damaged or of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the folder of a run, such as runs/demo")
    for name, read in (("results.json", _comparison), ("history.csv", _fit)):
        if (path := folder / name).is_file():
            try:
                return read(path)
            except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is no record of icnets, or damaged: {first_line(error)}") from error
    raise ValueError(
        f"{folder} holds no run: neither results.json, which icnets compare writes at its end, nor history.csv of "
        "icnets fit"
    )


def _comparison(path: Path) -> ComparisonFiles:
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema {record['schema']}, and this version reads {SCHEMA}; make the report with its own"
        )
    # The folder is wherever it is by now, and a file may not say what is imported.
    here = {"data": record["data"]["arguments"], "out": str(path.parent), "imports": {}}
    settings = rebuilt(Settings, record["settings"] | here)
    rows = rebuilt(list[Row], record["methods"])
    runs: dict[str, list[Run]] = {row.name: [] for row in rows}
    for run in rebuilt(list[Run], record["runs"]):
        runs[run.method].append(run)
    return ComparisonFiles(path.parent, record, settings, rows, runs)


def _fit(path: Path) -> FitFiles:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            history = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except ValueError as error:
        raise ValueError(f"{path} is no history of icnets fit, or damaged: {first_line(error)}") from error
    if not history or "epoch" not in history[0]:
        raise ValueError(f"{path} has no epochs; a report needs a run with at least one finished epoch")
    config = path.with_name("config.yaml")
    return FitFiles(path.parent, history, config.read_text(encoding="utf-8") if config.is_file() else "")
