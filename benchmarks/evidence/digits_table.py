"""The table of the comparison on scikit-learn's digits, recipes/demo.yaml, as a section of docs/evidence.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "demo.json"
OTHER = RESULTS.with_name("demo_avx2.json")


def interval(value: dict[str, Any] | None, sign: str = "") -> str:
    """Mean and confidence interval, "3.84 [3.58, 4.10]"; empty for none."""
    if value is None:
        return ""
    low, high = (f"{value[k]:{sign}.2f}" for k in ("low", "high"))
    return f"{value['mean']:{sign}.2f} [{low}, {high}]".replace("-", "−")


def table(results: dict[str, Any]) -> str:
    """The rows as a Markdown table with its footnote and verdicts."""
    lines = [
        "| method | error, % | against basic, pp | against its control, pp | time per image |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in results["methods"]:
        ratio = row["cost"]["latency"]["ratio"]
        cells = [interval(row["error"]), interval(row["to_basic"], "+"), interval(row["to_control"], "+")]
        control = f" (control: {row['control']})" if row["control"] else ""
        lines.append(f"| {row['name']}{control} | {' | '.join(cells)} | ×{ratio:.2f} |")
    seeds = len(results["settings"]["seeds"])
    images, versions = results["data"]["images"], results["versions"]
    lines += [
        "",
        f"A narrow ResNet-18 on scikit-learn's digits, {images['train']} training and {images['test']} test images; "
        f"mean and 95 % interval over {seeds} seeds, differences paired by seed. torch {versions['torch']}, CPU, "
        "eager. In the program's own words:",
        "",
        *[f"- {verdict}" for verdict in results["verdicts"]],
    ]
    return "\n".join(lines)


def elsewhere(results: dict[str, Any], method: str = "IC, warm start") -> str:
    """What the same comparison said on another processor, with no AVX-512: its time, and whether any row stands out."""
    rows = {row["name"]: row for row in results["methods"]}
    apart = [
        name
        for name, row in rows.items()
        if row["control"] and row["to_control"]["low"] * row["to_control"]["high"] > 0
    ]
    told = f"{', '.join(apart)} can be told from its control" if apart else "no row can be told from its control"
    return (
        f"The time is that of a processor with AVX-512. On one with AVX2, whose convolutions of these tiny images take "
        f"longer, {method} takes ×{rows[method]['cost']['latency']['ratio']:.2f} "
        f"(benchmarks/results/{OTHER.name}; there, {told})."
    )


def section(results: Path = RESULTS, other: Path = OTHER) -> str:
    """The whole section, with how to repeat it."""
    here, there = (json.loads(path.read_text(encoding="utf-8")) for path in (results, other))
    return (
        "## The quick comparison on digits\n\n"
        "`icnets compare --config recipes/demo.yaml`: three to five minutes on two CPU cores, no download of data.\n\n"
        f"{table(here)}\n\n{elsewhere(there)}\n"
    )
