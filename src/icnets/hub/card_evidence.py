"""What a comparison shows, for a model card: its table and its verdicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icnets.comparison.comparison_table import comparison_table
from icnets.comparison.run_files import read_run
from icnets.hub.markdown import escaped
from icnets.support.tables import Table
from icnets.support.text import few, first_line


class Evidence(NamedTuple):
    """What a comparison shows.

    Attributes:
        markdown: the section of the card, without its heading.
        data: name of the data set.
        classes: the labels in the order of the outputs.
        accuracy: this network's on the test images, a fraction in [0, 1]; None where it isn't said which of the
            networks it is.
        metric: what it is in words.
    """

    markdown: str = ""
    data: str = ""
    classes: Sequence[str] = ()
    accuracy: float | None = None
    metric: str = ""


def read_evidence(path: Path, method: str | None = None) -> Evidence:
    """Reads ``path``: a folder or results.json of ``icnets compare``.

    Args:
        path: the file or folder.
        method: the row that the network is of.

    Raises:
        ValueError: no such folder, no comparison in it, a damaged one, or no such method.
    """
    run = read_run(path.parent if path.name == "results.json" else path)
    mine = {row.name: row for row in run.rows}
    if method not in (None, *mine):
        raise ValueError(f"{path} has no method {method!r}; it has {few(list(mine), 10)}")
    whose, accuracy, metric = "Which row the weights are of isn't said.", None, ""
    if method is not None:
        whose = f"The weights here are one seed's of the row {escaped(method)}."
        accuracy, metric = 1 - mine[method].error.mean / 100, f"accuracy, mean over {mine[method].error.n} seeds"
    try:
        data = run.record["data"]
        table = _escaped(comparison_table(run.rows, run.settings, data)).markdown()
        verdicts = [f"- {escaped(verdict, 300)}" for verdict in run.record["verdicts"]]
        classes, where = [str(name) for name in data["classes"]], _data_name(run.settings.data)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} holds a damaged run ({first_line(error)}); give the folder of a whole one") from error
    text = "\n".join([table, whose, "", *verdicts])
    return Evidence(text, where, classes, accuracy, metric)


def _data_name(arguments: Mapping[str, Any]) -> str:
    """The data set by name: of a folder its last part, for the rest of its path is nobody's business."""
    if arguments.get("hf"):
        return str(arguments["hf"])
    if arguments.get("train_shards"):
        return "tar shards"
    return Path(arguments["root"]).name if arguments.get("root") else "scikit-learn's digits"


def _escaped(table: Table) -> Table:
    """``table`` with text of others as text; bars in its cells are left to the table itself."""
    columns, *rows = ([escaped(cell).replace("\\|", "|") for cell in row] for row in (table.columns, *table.rows))
    return Table(escaped(table.title, 300), columns, rows, [escaped(note, 1000) for note in table.notes])
