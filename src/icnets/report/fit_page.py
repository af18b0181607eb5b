"""The page of one or more runs of ``icnets fit``: their curves, test scores, cost, confusions, and where two differ."""

import csv
import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from icnets.data.data_module import ImageData
from icnets.open_network import OpenedNetwork, open_network
from icnets.profile.measure import count_macs, count_parameters
from icnets.report.charts import Curve, Figure, confusion_chart, curve_charts, loss_chart
from icnets.report.inspection import Inspection, answers, confusion_counts, images_of_test
from icnets.report.page import two_networks, write_page
from icnets.support.gone import without_gone
from icnets.support.rounds import interleaved
from icnets.support.tables import Table
from icnets.support.text import first_line, one_line

_MOST_IMAGES = 2000  # that are looked at, evenly spread over the test images
_BATCH, _ROUNDS = 8, 7  # of the time per image
_COLUMNS = "run", "test top-1, %", "test loss", "best val top-1, %", "parameters (IC)", "MACs (IC)", "ms/image"


@dataclass(frozen=True)
class FitRun:
    """What ``icnets fit`` and ``icnets test`` left in ``folder``; ``test`` is None where it wasn't tested."""

    name: str
    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    test: dict[str, Any] | None

    @cached_property
    def opened(self) -> OpenedNetwork:
        """The best weights; raises ValueError where they are missing or of a network of one's own."""
        return open_network(self.folder)

    @cached_property
    def data(self) -> Any:
        """The data module; raises ValueError where its images are missing."""
        options = without_gone({"data": self.config["data"]})["data"]
        data = ImageData(**options, seed=int(self.config["seed_everything"]))
        data.setup()
        return data

    def points(self, metric: str) -> list[tuple[float, float]]:
        """Pairs of an epoch and ``metric`` in it."""
        return [(row["epoch"], row[metric]) for row in self.rows if metric in row]


def read_fits(folders: Sequence[Path]) -> list[FitRun]:
    """The runs in ``folders``, named by these.

    Raises:
        ValueError: a folder holds no run of fit, or one that is damaged.
    """
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [_read(name, folder) for name, folder in zip(names, folders, strict=True)]


def _read(name: str, folder: Path) -> FitRun:
    test = None
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        with open(folder / "history.csv", newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        if (folder / "test.json").is_file():
            test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
            names = [entry["name"] for entry in test["classes"]]
            test = {"top1": 100 * test["top1"], "loss": test["loss"], "confusion": test["confusion"], "names": names}
        run = FitRun(name, folder, dict(config), rows, test)
        if not run.points("epoch") or not {"data", "model", "seed_everything"} <= run.config.keys():
            raise ValueError("no epoch, or no options of data and model")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} is no run of icnets fit, or damaged: {first_line(error)}") from error
    return run


def write_fit_report(runs: Sequence[FitRun], out: Path, *, images: int = 12) -> None:
    """Writes one HTML file to ``out``, at once or not at all.

    Args:
        runs: as :func:`read_fits` gives them.
        out: the file, in a folder that exists.
        images: shown of those that two runs answer differently.
    """
    with torch.random.fork_rng(devices=[]):
        validated = [_curve(run) for run in runs if run.points("val/top1")]
        losses = {run.name: {name: run.points(name) for name in ("train/loss", "val/loss")} for run in runs}
        look, looks = two_networks(lambda: _inspect(*runs), images) if len(runs) == 2 else (None, {})
        content = {
            "heading": "Runs" if len(runs) > 1 else "Run",
            "table": _table(runs),
            "curves": [*(curve_charts(validated) if validated else []), loss_chart(losses)],
            "looks": looks,
            "confusions": _confusions(runs, look),
            "facts": {run.name: f"{run.folder}, {int(run.rows[-1]['epoch'])} epochs" for run in runs},
            "command": shlex.join(["icnets", "report", *(str(run.folder) for run in runs)]),
            "settings": yaml.safe_dump({r.name: {k: r.config[k] for k in ("data", "model")} for r in runs}),
        }
    write_page(content, out, *(run.folder for run in runs))


def _curve(run: FitRun) -> Curve:
    rows = [row for row in run.rows if "val/top1" in row]
    errors = [100 * (1 - row["val/top1"]) for row in rows]
    return Curve(run.name, [int(row["epoch"]) for row in rows], [errors], [row["seconds"] for row in rows], warm=False)


def _table(runs: Sequence[FitRun]) -> Table:
    costs, notes = _costs(runs)
    rows = []
    for run in runs:
        top1, loss = (f"{run.test['top1']:.2f}", f"{run.test['loss']:.3f}") if run.test else ("", "")
        value, epoch = max(((top, -epoch) for epoch, top in run.points("val/top1")), default=(None, 0))
        best = "" if value is None else f"{100 * value:.2f} (epoch {-int(epoch)})"
        cost = costs.get(run.name, ["", "", ""])
        rows.append([run.name, top1, loss, best, *cost, f"{run.rows[-1]['seconds']:.0f}"])
        if run.test is None:
            test = f"icnets test --name {run.folder.name} --runs {run.folder.parent}"
            notes.append(f"{run.name} isn't tested: {test}")
    models, images = ([_model(r) for r in runs], [str(r.config["data"].get("root") or "digits") for r in runs])
    title = " on ".join(" and ".join(dict.fromkeys(names)) for names in (models, images))
    return Table(title, (*_COLUMNS, "training, s"), rows, notes)


def _model(run: FitRun) -> str:
    model = run.config["model"].get("model")
    return model if isinstance(model, str) else str(dict(model or {}).get("class_path", "a network")).rpartition(".")[2]


def _costs(runs: Sequence[FitRun]) -> tuple[dict[str, list[str]], list[str]]:
    """Parameters, MACs and milliseconds per image of each run's network, and notes on them."""
    steps, found, notes = dict[str, Callable[[], Any]](), dict[str, list[str]](), list[str]()
    for run in runs:
        try:
            network, (channels, side) = run.opened.network, run.opened.image_shape
        except (ValueError, OSError) as error:
            notes.append(f"The network of {run.name} can't be rebuilt: {one_line(error).rstrip('.')}.")
            continue
        sample = torch.zeros(_BATCH, channels, side or 224, side or 224)
        steps[run.name] = partial(network, sample)
        found[run.name] = [c.format() for c in (count_parameters(network), count_macs(network, sample[:1]))]
    with torch.no_grad():
        for name, seconds in interleaved(steps, _ROUNDS, min_seconds=0.01).items():
            found[name].append(f"{1000 * median(seconds) / _BATCH:.3g}")
    if found:
        what = f"batch {_BATCH}, {torch.get_num_threads()} thread(s), eager, forward, on this machine's CPU"
        notes.append(f"(IC): the part that collisions add. ms/image: {what}, median of {_ROUNDS} interleaved rounds.")
    return found, notes


def _inspect(first: FitRun, second: FitRun) -> Inspection:
    """Both networks on the same test images, at most ``_MOST_IMAGES``; raises ValueError where these differ."""
    data, other = first.data, second.data
    if (data.view, data.class_names, data.names("test")) != (other.view, other.class_names, other.names("test")):
        raise ValueError(f"{first.name} and {second.name} have other test images, or see them in another way")
    images, target, names = images_of_test(data, _MOST_IMAGES)
    both = (answers(run.name, run.opened.network, images) for run in (first, second))
    return Inspection(data, names, images, target, *both)


def _confusions(runs: Sequence[FitRun], look: Inspection | None) -> list[Figure]:
    """Of each run; one whose images or network aren't there is left out, and the reason stands above."""
    charts = []
    for number, run in enumerate(runs):
        with suppress(ValueError, OSError):
            charts.append(confusion_chart(*_counts(run, number, look), run.name, number))
    return charts


def _counts(run: FitRun, number: int, look: Inspection | None) -> tuple[list[list[int]], list[str]]:
    """Images by class and answer, and the classes: of the test's record or, without one, of a look at the images."""
    if run.test is not None:
        return run.test["confusion"], run.test["names"]
    if look is not None:
        found, target = (look.control, look.chosen)[number], look.target
    else:
        images, target, _ = images_of_test(run.data, _MOST_IMAGES)
        found = answers(run.name, run.opened.network, images)
    return confusion_counts(found, target, len(run.data.class_names)), run.data.class_names
