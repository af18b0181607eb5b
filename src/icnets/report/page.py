"""One HTML file from what a comparison left, or runs; everything that comes from files or users is escaped."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from icnets import __version__
from icnets.comparison.comparison_table import Row, comparison_table
from icnets.comparison.planned_runs import entries, plan
from icnets.comparison.run_files import ComparisonFiles
from icnets.comparison.verdict import verdicts
from icnets.report.charts import confusion_chart, cost_chart, curve_charts, curves
from icnets.report.inspection import Inspection, chosen_method, confusion_counts, disagreements, inspect
from icnets.support.files import atomic_write
from icnets.support.text import one_line


def write_report(comparison: ComparisonFiles, out: Path, *, method: str | None = None, images: int = 12) -> None:
    """Writes one HTML file to ``out``, at once or not at all.

    Args:
        comparison: as :func:`icnets.comparison.run_files.read_run` gives it.
        out: the file, in a folder that exists.
        method: whose network is looked at beside its control's; by default the IC network with the least error.
        images: shown of those that the two answer differently.

    Raises:
        ValueError: the comparison has no such method.
    """
    row = chosen_method(comparison, method)
    write_page({**_page(comparison), "looks": _looks(comparison, row, images)}, out)


def is_report(path: Path) -> bool:
    """Whether :func:`write_page` wrote a file, in this version or an earlier one."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return '<header><p class="soft">icnets report</p></header>' in file.read()


def write_page(content: Mapping[str, Any], out: Path) -> None:
    """Writes one HTML file of ``content``, the variables of ``page.html``, at once or not at all."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = lambda figure: Markup(figure.markup)  # made by charts.draw, which escapes text
    template = files("icnets.report").joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(content)
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _page(comparison: ComparisonFiles) -> dict[str, Any]:
    record, rows, settings = comparison.record, comparison.rows, comparison.settings
    data = record["data"]
    shown = [entry for entry in entries(settings, plan(settings)) if comparison.runs.get(entry.name)]
    table = comparison_table(rows, settings, data)
    return {
        "verdicts": verdicts(rows),
        "heading": "Comparison",
        "table": table,
        "curves": curve_charts(curves(shown, comparison.runs)),
        "costs": [cost_chart(rows, "time"), cost_chart(rows, "macs")],
        "facts": {
            "made": f"{record['created']}, in {record['seconds']:.0f} s",
            "machine": ", ".join(f"{k} {v}" for k, v in record["machine"].items() if v is not None),
            "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
            "images": ", ".join(f"{n} {split}" for split, n in data["images"].items()),
        },
        "command": record["command"],
        "settings": json.dumps({"data": data["arguments"], **record["settings"]}, indent=1),
        "made": made_from(settings.out),
    }


def made_from(*folders: Path) -> str:
    """The line at a page's end."""
    return (
        f"Made by icnets {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {', '.join(map(str, folders))}."
    )


def _looks(comparison: ComparisonFiles, row: Row | None, images: int) -> dict[str, Any]:
    """What needs the images and the trained networks; ``missing``: why there is nothing."""
    if row is None:
        return nothing_to_look_at("no method has IC units; name one by --method")
    try:
        look = inspect(comparison, row)
    except (ValueError, OSError) as error:
        return nothing_to_look_at(one_line(error).rstrip("."))
    classes = look.data.class_names
    counts = confusion_counts(look.chosen, look.target, len(classes))
    about = f"{row.name}, seed {look.seed}, {len(look.target)} test images."
    found = {"about": about, "its": "its control ", "confusions": [confusion_chart(counts, classes, row.name)]}
    return {**found, **two_networks(look, images=images)}


def nothing_to_look_at(why: str) -> dict[str, Any]:
    """What the page needs of images where there are none."""
    return {"missing": why, "about": "", "its": "", "confusions": [], "disagreements": []}


def two_networks(look: Inspection, *, images: int) -> dict[str, Any]:
    """What the page needs of the images that two networks answer differently."""
    shown, counts = disagreements(look, images=images)
    names = {"method": look.chosen.method, "control": look.control.method}
    return {"missing": None, **names, "images": len(look.target), "disagreements": shown, "counts": counts}
