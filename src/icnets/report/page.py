"""One HTML file from what a comparison left, or runs; everything that comes from files or users is escaped."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from icnets import __version__
from icnets.comparison.comparison_table import comparison_table
from icnets.comparison.planned_runs import entries, plan
from icnets.comparison.run_files import ComparisonFiles
from icnets.comparison.verdict import verdicts
from icnets.report.charts import confusion_chart, cost_chart, curve_charts, curves
from icnets.report.inspection import Inspection, chosen_method, confusion_counts, disagreements, inspect
from icnets.support.files import atomic_write
from icnets.support.text import one_line


def write_report(comparison: ComparisonFiles, out: Path, *, images: int = 12) -> None:
    """Writes one HTML file to ``out``, at once or not at all.

    Args:
        comparison: as :func:`icnets.comparison.run_files.read_run` gives it.
        out: the file, in a folder that exists.
        images: shown of those that the IC network with the least error and its control answer differently.
    """
    rows, settings = comparison.rows, comparison.settings
    record, data = comparison.record, comparison.record["data"]
    shown = [entry for entry in entries(settings, plan(settings)) if comparison.runs.get(entry.name)]
    content = {
        "verdicts": [*filter(None, [record.get("recommendation")]), *verdicts(rows)],
        "heading": "Comparison",
        "table": comparison_table(rows, settings, data),
        "curves": curve_charts(curves(shown, comparison.runs)),
        "costs": [cost_chart(rows)],
        **_looks(comparison, images),
        "facts": {
            "made": f"{record['created']}, in {record['seconds']:.0f} s",
            "machine": ", ".join(f"{k} {v}" for k, v in record["machine"].items() if v is not None),
            "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
            "images": ", ".join(f"{n} {split}" for split, n in data["images"].items()),
        },
        "command": record["command"],
        "settings": json.dumps({"data": data["arguments"], **record["settings"]}, indent=1),
    }
    write_page(content, out, settings.out)


def is_report(path: Path) -> bool:
    """Whether :func:`write_page` wrote a file, in this version or an earlier one."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return '<header><p class="soft">icnets report</p></header>' in file.read()


def write_page(content: Mapping[str, Any], out: Path, *folders: Path) -> None:
    """Writes one HTML file of what is in ``folders``, at once or not at all; ``content``: for ``page.html``.

    What it lacks of verdicts, costs, confusions and about is left out.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = lambda figure: Markup(figure.markup)  # made by charts.draw, which escapes text
    template = files("icnets.report").joinpath("page.html").read_text(encoding="utf-8")
    now, where = datetime.now(UTC), ", ".join(map(str, folders))
    made = f"Made by icnets {__version__} on {now:%Y-%m-%d %H:%M} UTC from {where}."
    nothing = {"verdicts": [], "costs": [], "confusions": [], "about": ""}
    page = environment.from_string(template).render({**nothing, **content}, made=made)
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _looks(comparison: ComparisonFiles, images: int) -> dict[str, Any]:
    """What needs the images and the trained networks."""
    row = chosen_method(comparison)
    if row is None:
        return {"looks": {"missing": "no method has IC units"}}
    look, looks = two_networks(lambda: inspect(comparison, row), images)
    if look is None:
        return {"looks": looks}
    classes = look.data.class_names
    chart = confusion_chart(confusion_counts(look.chosen, look.target, len(classes)), classes, row.name)
    about = f"{row.name}, seed {look.data.seed}, {len(look.target)} test images."
    return {"looks": looks, "confusions": [chart], "about": about}


def two_networks(look_at: Callable[[], Inspection], images: int) -> tuple[Inspection | None, dict[str, Any]]:
    """A look at two networks and what the page shows of it: so many images, or why there are none."""
    try:
        look = look_at()
        shown, counts = disagreements(look, images=images)
    except (ValueError, OSError) as error:
        return None, {"missing": one_line(error).rstrip(".")}
    names = {"method": look.chosen.method, "control": look.control.method}
    return look, {**names, "images": len(look.target), "disagreements": shown, "counts": counts}
