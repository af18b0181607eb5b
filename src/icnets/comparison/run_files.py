"""What the folder of a comparison holds: its results.json."""

import difflib
import json
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from icnets.comparison.comparison_table import Row
from icnets.comparison.engine import SCHEMA
from icnets.comparison.runs import Run
from icnets.comparison.settings import Settings
from icnets.support.text import first_line


@dataclass(frozen=True)
class ComparisonFiles:
    """What ``icnets compare`` left in ``settings.out``. ``runs``: for each row its runs, in the order of the seeds."""

    record: dict[str, Any]
    settings: Settings
    rows: list[Row]
    runs: dict[str, list[Run]]


def rebuilt(kind: Any, value: Any, *, strict: bool = False) -> Any:
    """The object of type ``kind`` that ``value`` was made from by ``dataclasses.asdict`` and JSON.

    Args:
        kind: a dataclass, or what its fields can be.
        value: of dictionaries, lists and plain values.
        strict: refuse a name that ``kind`` has no field of; otherwise it is of the past, and left out.

    Raises:
        ValueError: ``strict``, and there is such a name.

    Example:
        >>> from icnets.comparison.settings import Network
        >>> rebuilt(Network, {"name": "resnet50", "options": {}})
        Network(name='resnet50', options={}, before_norm=None, weights=None)
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if strict and (unknown := value.keys() - hints.keys()):
            near = difflib.get_close_matches(min(unknown), hints, n=1)
            raise ValueError(f"{min(unknown)} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
        fields = {name: rebuilt(hints[name], value[name], strict=strict) for name in value if name in hints}
        return kind(**fields)  # type: ignore[operator]
    kinds = get_args(kind)
    if get_origin(kind) is list:
        return [rebuilt(kinds[0], entry, strict=strict) for entry in value]
    if kind is Path or get_origin(kind) is tuple:
        return (get_origin(kind) or kind)(value)
    inner = next((k for k in kinds if is_dataclass(k) or k is Path or get_origin(k) is tuple), None)
    if value is None or inner is None or (is_dataclass(inner) and not isinstance(value, dict)):
        return value
    return rebuilt(inner, value, strict=strict)


def read_run(folder: Path) -> ComparisonFiles:
    """The comparison in ``folder``.

    Raises:
        ValueError: there is no such folder, no comparison in it, or one that is damaged or of another version.
    """
    path = folder / "results.json"
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the folder of a run, such as runs/demo")
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no results.json, which icnets compare writes at its end")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            what = f"{path} has schema {record['schema']}, and this version reads {SCHEMA}"
            raise ValueError(f"{what}; make the report with its own")
        # The folder is wherever it is by now, and a file may not say what is imported.
        here = {"data": record["data"]["arguments"], "out": str(folder), "imports": {}}
        settings = rebuilt(Settings, record["settings"] | here)
        rows = rebuilt(list[Row], record["methods"])
        runs: dict[str, list[Run]] = {row.name: [] for row in rows}
        for run in rebuilt(list[Run], record["runs"]):
            runs[run.method].append(run)
        return ComparisonFiles(record, settings, rows, runs)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no record of icnets compare, or damaged: {first_line(error)}") from error
