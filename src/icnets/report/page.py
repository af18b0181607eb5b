"""One HTML file from what runs left; everything that comes from files or users is escaped."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from icnets import __version__
from icnets.compare.comparison_table import Row, comparison_table, verdicts
from icnets.compare.planned_runs import entries, plan
from icnets.compare.run_files import ComparisonFiles, FitFiles
from icnets.report.charts import Curve, confusion_chart, cost_chart, curve_charts, curves
from icnets.report.inspection import chosen_method, confusion_counts, disagreements, inspect
from icnets.support.files import atomic_write
from icnets.support.text import one_line


def write_report(
    records: Sequence[ComparisonFiles | FitFiles], out: Path, *, method: str | None = None, images: int = 12
) -> None:
    """Writes one HTML file to ``out``, at once or not at all.

    Args:
        records: of folders of ``icnets compare`` and ``icnets fit``, as :func:`icnets.compare.run_files.read_run` gives
            them.
        out: the file, in a folder that exists.
        method: of a comparison, whose network is looked at beside its control's; by default the IC network with the
            least error.
        images: shown of those that the two answer differently.

    Raises:
        ValueError: a comparison has no such method.
    """
    comparisons = [r for r in records if isinstance(r, ComparisonFiles)]
    chosen = [chosen_method(c, method) for c in comparisons]  # a mistake shows before any work
    parts = [_comparison(c, row, images) for c, row in zip(comparisons, chosen, strict=True)]
    trainings = [_training(r) for r in records if isinstance(r, FitFiles)]
    page = {
        "title": [*parts, *trainings][0]["title"] if len(records) == 1 else f"{len(records)} runs",
        "comparisons": parts,
        "trainings": trainings,
        "made": f"Made by icnets {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from "
        f"{', '.join(str(record.folder) for record in records)}.",
    }
    with atomic_write(out) as temporary:
        temporary.write_text(_rendered(page), encoding="utf-8", errors="replace")


def _rendered(page: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = lambda figure: Markup(figure.markup)  # made by charts.draw, which escapes text
    template = files("icnets.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page)


def _comparison(comparison: ComparisonFiles, row: Row | None, images: int) -> dict[str, Any]:
    record, rows, settings = comparison.record, comparison.rows, comparison.settings
    data, shown = record["data"], entries(settings, plan(settings))
    table = comparison_table(rows, settings, data)
    remark = " With distillation the loss has another term." if any(method.wld for method in settings.methods) else ""
    errors = curve_charts(curves(shown, comparison.runs), "validation error, %")
    losses = curve_charts(curves(shown, comparison.runs, loss=True), "training loss, nats", remark=remark)
    return {
        "title": table.title,
        "verdicts": verdicts(rows),
        "table": table,
        "curves": [*errors, *losses],
        "costs": [cost_chart(rows, "time"), cost_chart(rows, "macs")],
        "looks": _looks(comparison, row, images),
        "facts": {
            "made": f"{record['created']}, in {record['seconds']:.0f} s",
            "machine": ", ".join(f"{k} {v}" for k, v in record["machine"].items() if v is not None),
            "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
            "images": ", ".join(f"{n} {split}" for split, n in data["images"].items()),
        },
        "command": record["command"],
        "settings": json.dumps({"data": data["arguments"], **record["settings"]}, indent=1),
    }


def _looks(comparison: ComparisonFiles, row: Row | None, images: int) -> dict[str, Any]:
    """What needs the images and the trained networks; ``missing``: why there is nothing."""
    if row is None:
        return {"missing": "no method has IC units; name one by --method"}
    try:
        look = inspect(comparison, row)
    except (ValueError, OSError) as error:
        return {"missing": one_line(error).rstrip(".")}
    shown, counts = disagreements(look, images=images)
    classes = look.data.class_names
    return {
        "missing": None,
        "method": row.name,
        "control": look.control.method,
        "seed": look.seed,
        "images": len(look.target),
        "confusion": confusion_chart(confusion_counts(look.chosen, look.target, len(classes)), classes, row.name),
        "disagreements": shown,
        "counts": counts,
    }


def _training(run: FitFiles) -> dict[str, Any]:
    history, figures = run.history, []
    summary = f"{len(history)} epochs in {history[-1].get('seconds', 0):.0f} s of training."
    tops = [row for row in history if "val/top1" in row]
    if tops:
        errors = [[100 * (1 - row["val/top1"]) for row in tops]]
        curve = Curve(run.folder.name, "run", [int(r["epoch"]) for r in tops], errors, [r["seconds"] for r in tops])
        figures = curve_charts([curve], "validation error, %")
        best = max(tops, key=lambda row: row["val/top1"])
        summary += f" Best val/top1 {100 * best['val/top1']:.2f} %, in epoch {best['epoch']:.0f}."
    columns = [c for c in ("epoch", "seconds", "train/loss", "val/loss", "val/top1") if c in history[-1]]
    rows = [[f"{row[c]:.5g}" if c in row else "" for c in columns] for row in history]
    table = {"columns": columns, "rows": rows}
    return {"title": run.folder.name, "summary": summary, "curves": figures, "table": table, "settings": run.config}
