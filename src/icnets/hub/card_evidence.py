"""What a run of ``icnets compare`` or ``icnets fit`` shows, for a model card: the table, seeds, intervals, controls."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icnets.compare.statistics import Interval
from icnets.hub.markdown import escaped
from icnets.support.text import few, first_line

_GIVE = "give a folder that icnets compare or icnets fit wrote"
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, IndexError)


class Measured(NamedTuple):
    """An accuracy, a fraction in [0, 1], and what it is one of."""

    name: str
    accuracy: float
    split: str


class Evidence(NamedTuple):
    """What a run shows.

    Attributes:
        markdown: the section of the card, without its heading.
        data: name of the data set, as the run has it.
        dataset: its id on the Hub, where it is from there.
        classes: the labels in the order of the outputs; empty where the run doesn't list them.
        measured: this network's accuracy; None where it isn't known which of the run's networks it is.
        notes: what the run noted beside its weights: mean, std, image_size, class_names, ...
    """

    markdown: str
    data: str
    dataset: str | None
    classes: list[str]
    measured: Measured | None
    notes: Mapping[str, str] = {}


def read_evidence(path: Path, method: str | None = None) -> Evidence:
    """Reads ``path``: a folder or results.json of ``icnets compare``, or a run's folder of ``icnets fit``.

    Args:
        path: the file or folder.
        method: of a comparison, the row that the network is of.

    Raises:
        ValueError: no such file, nothing of ours, or no such method.
    """
    results = path / "results.json" if path.is_dir() else path
    if results.is_file():
        try:
            record = json.loads(results.read_text(encoding="utf-8"))
            names = [row["name"] for row in record["methods"]]
            if method is None or method in names:
                return _of_comparison(record, method)
        except _DAMAGED as error:
            raise ValueError(f"{results} is no whole results.json of icnets compare ({error!r}); {_GIVE}") from None
        raise ValueError(f"{results} has no method {method!r}; it has {few(names, 10)}")
    if method is not None:
        raise ValueError(f"method is {method!r}, but {path} is no comparison; leave method out")
    if not path.exists():
        raise ValueError(f"there is no evidence {path}; {_GIVE}")
    if not (path / "history.csv").is_file() or not (path / "config.yaml").is_file():
        raise ValueError(f"{path} has neither results.json nor history.csv with config.yaml; {_GIVE}")
    try:
        return _of_fit(path)
    except _DAMAGED as error:
        raise ValueError(f"{path} is no whole run of icnets fit ({error!r}); give the run's folder") from None


def _interval(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    return "" if value is None else Interval(**value).format(signed=signed)


def _data_name(arguments: Mapping[str, Any]) -> str:
    """The data set by name: of a folder its last part, for the rest of its path is nobody's business."""
    if arguments.get("hf"):
        return str(arguments["hf"])
    if arguments.get("train_shards"):
        return "tar shards"
    return Path(arguments["root"]).name if arguments.get("root") else "scikit-learn's digits"


def _of_comparison(record: Mapping[str, Any], method: str | None) -> Evidence:
    data, rows, settings = record["data"], record["methods"], record["settings"]
    where, seeds = _data_name(data["arguments"]), [int(seed) for seed in settings["seeds"]]
    mine = next((row for row in rows if row["name"] == method), None)
    train, test = (f"{int(data['images'][split]):,}" for split in ("train", "test"))
    which = (
        "The weights here are one seed's of the row in bold." if mine else "Which row the weights are of isn't said."
    )
    text = (
        f"`icnets compare`: {escaped(settings['network']['name'])} on {escaped(where)}, {train} training and {test} "
        f"test images. Mean and {100 * rows[0]['error']['confidence']:g} % t interval over {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}); differences are paired by seed and not "
        f"corrected for the number of rows. Time: of the forward pass, {escaped(rows[0]['name'])}'s being 1. {which}"
    )
    verdicts = [f"- {escaped(verdict, 300)}" for verdict in record["verdicts"]]
    versions = ", ".join(f"{escaped(name)} {escaped(str(version))}" for name, version in record["versions"].items())
    lines = [*_comparison_table(rows, method), "", text, "", *verdicts, "", f"Versions: {versions}."]
    label = f"accuracy, mean over {len(seeds)} seeds"
    measured = None if mine is None else Measured(label, 1 - float(mine["error"]["mean"]) / 100, "test")
    classes = [str(name) for name in data["classes"]]
    return Evidence("\n".join(lines), where, data["arguments"].get("hf"), classes, measured)


def _comparison_table(rows: Sequence[Mapping[str, Any]], method: str | None) -> list[str]:
    columns = ("method", "error, %", f"− {escaped(rows[0]['name'])}, pp", "its control", "− control, pp", "time")
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---|---:|---:|"]
    for row in rows:
        name = escaped(row["name"])
        cells = (
            f"**{name}**" if row["name"] == method else name,
            _interval(row["error"]),
            _interval(row["to_basic"], signed=True),
            escaped(row["control"] or ""),
            _interval(row["to_control"], signed=True),
            f"×{row['cost']['latency']['ratio']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _of_fit(folder: Path) -> Evidence:
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(first_line(error)) from None
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    scored = [row for row in rows if row.get("val/top1", -1) >= 0]  # neither missing nor nan
    best = max(scored, key=lambda row: row["val/top1"])
    data, model = config["data"], config["model"]["model"]
    where, name = _data_name(data), model if isinstance(model, str) else str(model["class_path"]).rpartition(".")[2]
    columns = [c for c in ("train/loss", "val/loss", "val/top1") if c in best]
    lines = [f"| epoch | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for label, row in (("best", best), ("last", rows[-1]))[: 1 + (best is not rows[-1])]:
        cells = (f"{row[c]:.2%}" if c == "val/top1" else f"{row[c]:.4f}" for c in columns)
        lines.append(f"| {row['epoch']:g} ({label}) | {' | '.join(cells)} |")
    lines += [
        "",
        f"`icnets fit`: {escaped(name)} on {escaped(where)}, {len(rows)} epoch{'s' * (len(rows) > 1)}, seed "
        f"{int(config['seed_everything'])}. One run: it has no interval over seeds, and no control was trained beside "
        "it. The best epoch was chosen on these same validation images, so its accuracy is optimistic.",
    ]
    measured = Measured(f"accuracy on validation, best epoch of {len(scored)}", best["val/top1"], "validation")
    return Evidence("\n".join(lines), where, data.get("hf"), [], measured, _notes_of_run(folder))


def _notes_of_run(folder: Path) -> dict[str, str]:
    from icnets.checkpoint.safetensors_file import read

    path = folder / "checkpoints" / "best.safetensors"
    return read(path)[2] if path.is_file() else {}
