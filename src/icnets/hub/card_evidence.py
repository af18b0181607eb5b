"""What a run of ``icnets compare`` or ``icnets fit`` shows, for a model card: a table and verdicts, or a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icnets.compare.comparison_table import comparison_table
from icnets.compare.run_files import ComparisonFiles, FitFiles, read_run
from icnets.hub.markdown import escaped
from icnets.support.tables import Table
from icnets.support.text import few, first_line


class Evidence(NamedTuple):
    """What a run shows.

    Attributes:
        markdown: the section of the card, without its heading.
        data: name of the data set, as the run has it.
        dataset: its id on the Hub, where it is from there.
        classes: the labels in the order of the outputs; empty where the run doesn't list them.
        accuracy: this network's, a fraction in [0, 1]; None where it isn't known which of the run's networks it is.
        metric: what it is in words.
        split: the images that it is of.
    """

    markdown: str = ""
    data: str = ""
    dataset: str | None = None
    classes: Sequence[str] = ()
    accuracy: float | None = None
    metric: str = ""
    split: str = "test"


def read_evidence(path: Path, method: str | None = None) -> Evidence:
    """Reads ``path``: a folder or results.json of ``icnets compare``, or a run's folder of ``icnets fit``.

    Args:
        path: the file or folder.
        method: of a comparison, the row that the network is of.

    Raises:
        ValueError: no such folder, no run of ours, a damaged one, or no such method.
    """
    import yaml

    run = read_run(path.parent if path.name == "results.json" else path)
    try:
        return _of_fit(run, method) if isinstance(run, FitFiles) else _of_comparison(run, method)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} holds a damaged run ({first_line(error)}); give the folder of a whole one") from error


def _data_name(arguments: Mapping[str, Any]) -> str:
    """The data set by name: of a folder its last part, for the rest of its path is nobody's business."""
    if arguments.get("hf"):
        return str(arguments["hf"])
    if arguments.get("train_shards"):
        return "tar shards"
    return Path(arguments["root"]).name if arguments.get("root") else "scikit-learn's digits"


def _of_comparison(run: ComparisonFiles, method: str | None) -> Evidence:
    mine = {row.name: row for row in run.rows}
    if method not in (None, *mine):
        raise ValueError(f"{run.folder} has no method {method!r}; it has {few(list(mine), 10)}")
    whose, accuracy, metric = "Which row the weights are of isn't said.", None, ""
    if method is not None:
        whose = f"The weights here are one seed's of the row {escaped(method)}."
        accuracy, metric = 1 - mine[method].error.mean / 100, f"accuracy, mean over {mine[method].error.n} seeds"
    data = run.record["data"]
    table = _escaped(comparison_table(run.rows, run.settings, data)).markdown()
    verdicts = [f"- {escaped(verdict, 300)}" for verdict in run.record["verdicts"]]
    classes = [str(name) for name in data["classes"]]
    text = "\n".join([table, whose, "", *verdicts])
    return Evidence(text, _data_name(run.settings.data), run.settings.data.get("hf"), classes, accuracy, metric)


def _escaped(table: Table) -> Table:
    """``table`` with text of others as text; bars in its cells are left to the table itself."""
    columns, *rows = ([escaped(cell).replace("\\|", "|") for cell in row] for row in (table.columns, *table.rows))
    return Table(escaped(table.title, 300), columns, rows, [escaped(note, 1000) for note in table.notes])


def _of_fit(run: FitFiles, method: str | None) -> Evidence:
    import yaml

    if method is not None:
        raise ValueError(f"method is {method!r}, but {run.folder} is no comparison; leave method out")
    data = yaml.safe_load(run.config)["data"]
    scored = [row for row in run.history if row.get("val/top1", -1) >= 0]  # neither missing nor nan
    if not scored:
        raise ValueError(f"{run.folder} has no epoch with val/top1; give the folder of a run that validated")
    best = max(scored, key=lambda row: row["val/top1"])
    where, accuracy, epochs = _data_name(data), best["val/top1"], f"{best['epoch']:g} of {len(run.history)}"
    text = (
        f"`icnets fit` on {escaped(where)}: val/top1 {accuracy:.2%} after epoch {epochs}, the best on these same "
        "validation images. One run, without an interval over seeds and without a control."
    )
    return Evidence(text, where, data.get("hf"), (), accuracy, "accuracy, best epoch", "validation")
