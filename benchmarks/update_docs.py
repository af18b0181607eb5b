"""Writes the tables of the README and the docs from benchmarks/results.

demo.json is the results.json of a run of `make demo`, cpu.jsonl what benchmarks/cpu.py measured.

python benchmarks/update_docs.py                      # rewrite the tables
python benchmarks/update_docs.py runs/demo            # take the results of that run first
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cost_table
import rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
START = "<!-- demo table: written by benchmarks/update_docs.py from benchmarks/results/demo.json -->"
END = "<!-- end of demo table -->"
CPU_RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
CPU_START = "<!-- cpu tables: written by benchmarks/update_docs.py from benchmarks/results/cpu.jsonl -->"
CPU_END = "<!-- end of cpu tables -->"
SHORT_START = "<!-- cost table: written by benchmarks/update_docs.py from benchmarks/results/cpu.jsonl -->"
SHORT_END = "<!-- end of cost table -->"


def interval(value: dict[str, Any] | None, sign: str = "") -> str:
    """Mean and confidence interval, "3.84 [3.58, 4.10]"; empty for none."""
    if value is None:
        return ""
    low, high = (f"{value[k]:{sign}.2f}" for k in ("low", "high"))
    return f"{value['mean']:{sign}.2f} [{low}, {high}]".replace("-", "−")


def table(results: dict[str, Any]) -> str:
    """The demo's rows as a Markdown table with its footnote and verdicts."""
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
        f"`make demo`: a narrow ResNet-18 on scikit-learn's digits, {images['train']} training and {images['test']} "
        f"test images; mean and 95 % interval over {seeds} seeds, differences paired by seed. torch "
        f"{versions['torch']}, CPU, eager. In the program's own words:",
        "",
        *[f"- {verdict}" for verdict in results["verdicts"]],
    ]
    return "\n".join(lines)


def between(text: str, start: str, end: str, content: str) -> str:
    """``text`` with the part between two markers replaced."""
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n\n{content}\n\n{end}{tail}"


def updated(readme: str, results: dict[str, Any], costs: Path = CPU_RESULTS) -> str:
    """``readme`` with its demo table made of ``results``, and its cost table of the lines of ``costs``."""
    readme = between(readme, START, END, table(results))
    return between(readme, SHORT_START, SHORT_END, cost_table.summary(rows.read(costs)))


def updated_cost(page: str, results: Path) -> str:
    """docs/cost.md with its tables made of the lines of ``results``."""
    return between(page, CPU_START, CPU_END, cost_table.markdown(rows.read(results)))


def networks_page() -> str:
    """docs/networks.md: the registered networks by family."""
    from icnets.timm_models import FAMILIES

    rows = [f"| {family} | {' '.join(f'`ic_{n}`' for n in names.split())} |" for family, names in FAMILIES.items()]
    head = [
        "# Networks with an `ic_` name",
        "",
        "Written by benchmarks/update_docs.py from the table in src/icnets/timm_models.py. `import icnets.timm_models`",
        "registers them with timm; `icnets.create_model` converts every other network of timm's as well.",
    ]
    return "\n".join([*head, "", "| family | networks |", "|---|---|", *rows]) + "\n"


def main(argv: list[str]) -> None:
    if argv:
        run = Path(argv[0])
        shutil.copyfile(run / "results.json", RESULTS)
    readme = ROOT / "README.md"
    text = updated(readme.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8")))
    readme.write_text(text, encoding="utf-8")
    (ROOT / "docs" / "networks.md").write_text(networks_page(), encoding="utf-8")
    cost = ROOT / "docs" / "cost.md"
    cost.write_text(updated_cost(cost.read_text(encoding="utf-8"), CPU_RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
