"""``icnets report``: reads the folders of runs, looks at their networks, and writes one page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from icnets import __version__
from icnets.cli.parser import Parser
from icnets.compare.comparison_table import Row, comparison_table, curves, title_of, verdicts
from icnets.compare.plots import Curve
from icnets.report.charts import confusion_chart, cost_chart, curve_charts, firing_chart, weight_chart
from icnets.report.figures import Figure
from icnets.report.inspection import Inspection, chosen_method, inspect
from icnets.report.page import ComparisonPart, Looks, TrainingPart, render
from icnets.report.pictures import confusion_counts, confusions, disagreements
from icnets.report.records import Comparison, Training, read
from icnets.support.files import atomic_write
from icnets.support.text import one_line

__all__ = ["main", "report"]


def _parser() -> Parser:
    parser = Parser(
        prog="icnets report",
        description="One HTML page about the runs, which needs no network. The images are read again from where a run "
        "found them; without them the page says so and has the rest.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", type=Path, nargs="+", help="folder of icnets compare, such as runs/demo, or icnets fit")
    add("--out", metavar="FILE", type=Path, help="the page (default: report.html in the folder of RUN)")
    add("--method", metavar="NAME", help="the method that is looked at (default: the IC network with the least error)")
    add("--images", metavar="N", type=int, default=12, help="images on which it and its control differ (default: 12)")
    add("--force", action="store_true", help="replace FILE if it exists")
    return parser


def report(records: Sequence[Comparison | Training], out: Path, *, method: str | None = None, images: int = 12) -> None:
    """Writes one HTML file to ``out``, at once or not at all.

    Args:
        records: of folders of ``icnets compare`` and ``icnets fit``, as :func:`icnets.report.records.read` gives them.
        out: the file, in a folder that exists.
        method: of a comparison, whose network is looked at beside its control's; by default the IC network with the
            least error.
        images: shown of those that the two answer differently.

    Raises:
        ValueError: a comparison has no such method.
    """
    comparisons = [r for r in records if isinstance(r, Comparison)]
    chosen = [chosen_method(c, method) for c in comparisons]  # a mistake shows before any work
    parts = [_comparison(c, row, images) for c, row in zip(comparisons, chosen, strict=True)]
    trainings = [_training(r) for r in records if isinstance(r, Training)]
    title = (parts[0].title if parts else trainings[0].title) if len(records) == 1 else f"{len(records)} runs"
    folders = ", ".join(str(record.folder) for record in records)
    made = f"Made by icnets {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {folders}."
    with atomic_write(out) as temporary:
        temporary.write_text(render(title, parts, trainings, made), encoding="utf-8", errors="replace")


def _comparison(comparison: Comparison, row: Row | None, images: int) -> ComparisonPart:
    record, rows, settings = comparison.record, comparison.rows, comparison.settings
    data = record["data"]
    root = data["arguments"].get("root")
    title = title_of(
        settings.network.name, None if root is None else Path(root), data["images"]["train"], len(settings.seeds)
    )
    table = comparison_table(rows, title, f"{data['images']['test']} test images")
    boundary = comparison.folder / "decision_boundary.png"
    facts = [
        ("made", f"{record['created']}, in {record['seconds']:.0f} s"),
        ("machine", ", ".join(f"{k} {v}" for k, v in record["machine"].items() if v is not None)),
        ("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ("images", ", ".join(f"{n} {split}" for split, n in data["images"].items())),
    ]
    return ComparisonPart(
        title=table.title,
        verdicts=verdicts(rows),
        columns=list(table.columns),
        rows=[list(cells) for cells in table.rows],
        notes=list(table.notes),
        curves=_curves(comparison),
        costs=[cost_chart(rows, "time"), cost_chart(rows, "macs")],
        looks=_looks(comparison, row, images),
        boundary=_data_uri(boundary) if boundary.is_file() else None,
        facts=facts,
        command=record["command"],
        settings=json.dumps({"data": data["arguments"], **record["settings"]}, indent=1),
    )


def _curves(comparison: Comparison) -> list[Figure]:
    methods, runs = comparison.settings.methods, comparison.runs
    remark = " With distillation the loss has another term." if any(method.wld for method in methods) else ""
    errors = curve_charts(curves(methods, runs), "validation error, %")
    return [*errors, *curve_charts(curves(methods, runs, loss=True), "training loss, nats", remark=remark)]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _looks(comparison: Comparison, row: Row | None, images: int) -> Looks:
    if row is None:
        return Looks(missing="no method has IC units; name one by --method")
    try:
        look = inspect(comparison, row)
    except (ValueError, OSError) as error:
        return Looks(missing=one_line(error).rstrip("."))
    shown, counts = disagreements(look, images=images)
    classes = look.data.class_names
    return Looks(
        method=row.name,
        control=look.control.method,
        seed=look.seed,
        images=len(look.target),
        confusion=confusion_chart(confusion_counts(look.chosen, look.target, len(classes)), classes, row.name),
        confusions=confusions(look, pairs=5, images=8),
        disagreements=shown,
        counts=counts,
        layers=_layers(look),
    )


def _layers(look: Inspection) -> list[Figure]:
    units = look.units
    return [firing_chart(units.rates), weight_chart(units.weights)] if units.rates else []


def _training(run: Training) -> TrainingPart:
    history = run.history
    tops = [row for row in history if "val/top1" in row]
    figures = []
    if tops:
        errors = [[100 * (1 - row["val/top1"]) for row in tops]]
        curve = Curve(run.folder.name, "run", [int(r["epoch"]) for r in tops], errors, [r["seconds"] for r in tops])
        figures = curve_charts([curve], "validation error, %")
    best = max(tops, key=lambda row: row["val/top1"], default=None)
    summary = f"{len(history)} epochs in {history[-1].get('seconds', 0):.0f} s of training."
    if best is not None:
        summary += f" Best val/top1 {100 * best['val/top1']:.2f} %, in epoch {best['epoch']:.0f}."
    columns: list[str] = [c for c in ("epoch", "seconds", "train/loss", "val/loss", "val/top1") if c in history[-1]]
    rows = [[f"{row[c]:.5g}" if c in row else "" for c in columns] for row in history]
    return TrainingPart(run.folder.name, summary, figures, columns, rows, run.config)


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    args = _parser().parse_args(argv)
    if args.out is None and len(args.runs) > 1:
        raise ValueError(f"{len(args.runs)} runs go into one page; say where: --out report.html")
    out = args.out or args.runs[0] / "report.html"
    if args.images < 0:
        raise ValueError(f"--images is {args.images}; it must be at least 0")
    records = [read(run) for run in args.runs]
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} of --out doesn't exist; create it first")
    if args.out is not None and out.exists() and not args.force:
        raise ValueError(f"{out} exists already; give another --out, or --force")
    report(records, out, method=args.method, images=args.images)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); it needs no network: open it, or send it")
    return 0
