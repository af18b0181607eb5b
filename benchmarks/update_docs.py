"""Writes the tables of the README and the docs from benchmarks/results.

cpu.jsonl is what benchmarks/cpu.py measured. docs/evidence.md has a script of its own.

python benchmarks/update_docs.py
"""

from pathlib import Path

import cost_table
import rows

ROOT = Path(__file__).resolve().parent.parent
CPU_RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
CPU_START = "<!-- cpu tables: written by benchmarks/update_docs.py from benchmarks/results/cpu.jsonl -->"
CPU_END = "<!-- end of cpu tables -->"
SHORT_START = "<!-- cost table: written by benchmarks/update_docs.py from benchmarks/results/cpu.jsonl -->"
SHORT_END = "<!-- end of cost table -->"


def between(text: str, start: str, end: str, content: str) -> str:
    """``text`` with the part between two markers replaced."""
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n\n{content}\n\n{end}{tail}"


def updated(readme: str, costs: Path = CPU_RESULTS) -> str:
    """``readme`` with its cost table made of the lines of ``costs``."""
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


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "docs" / "networks.md").write_text(networks_page(), encoding="utf-8")
    cost = ROOT / "docs" / "cost.md"
    cost.write_text(updated_cost(cost.read_text(encoding="utf-8"), CPU_RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
