"""Rows as tables: for a terminal, and for the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engines import ENGINES
from icnets.support.rounds import Ratio
from icnets.support.tables import Table
from networks import FAMILIES, VARIANTS, Family
from rows import Key, Row, by_machine, latest

__all__ = ["markdown", "summary", "tables"]

Rows = dict[Key, Row]


def tables(rows: Iterable[Row]) -> list[Table]:
    """A table for each family that has rows, from the last row of each key; engines of the past are left out."""
    found = {key: row for key, row in latest(rows).items() if key[2] in ENGINES}
    names = dict.fromkeys(key[0] for key in found)
    families = [FAMILIES[n] for n in FAMILIES if n in names] + [Family(n, "") for n in names if n not in FAMILIES]
    return [_family_table({k: r for k, r in found.items() if k[0] == f.name}, f) for f in families]


def markdown(rows: Iterable[Row]) -> str:
    """The tables for the docs, and under them what they were measured with; machine by machine, the last one first."""
    parts: list[str] = []
    for own in by_machine(rows):
        parts += [
            f"### {_where(own[0])}",
            *(table.markdown().strip() for table in tables(own)),
            _conditions(latest(own)),
        ]
    return "\n\n".join(parts) or "Not measured yet."


def summary(rows: Iterable[Row], network: str = "resnet50", batch: int = 8) -> str:
    """One network at one batch size, as short as it goes: the README's table; medians alone."""
    needed = [(network, variant, "eager", batch) for variant in ("basic", "ic-all", "deeper")]
    found = {key[1:3]: row for key, row in latest(rows, needed).items() if (key[0], key[3]) == (network, batch)}
    variants = [v for v in ("ic-all", "ic-kxk", "deeper") if any(key[0] == v for key in found)]
    heads = [FAMILIES[network].deeper if v == "deeper" else VARIANTS[v] for v in variants]
    lines = []
    for engine in dict.fromkeys(engine for engine in ENGINES if ("basic", engine) in found):
        ratios = [f"×{found[v, engine].ratio.median:.2f}" if (v, engine) in found else "" for v in variants]
        lines.append([ENGINES[engine].label, *ratios])
    where = "".join(f", {place}" for place in dict.fromkeys(_where(row) for row in found.values()))
    title = f"{network}, batch {batch}{where}: time, the basic network's in the same engine being 1"
    return Table(title, ["engine", *heads], lines, []).markdown().strip()


def _family_table(rows: Rows, family: Family) -> Table:
    measured = {key[1] for key in rows}
    variants = [v for v in VARIANTS if v != "basic" and (v in measured or not family.has(v))]
    deeper = next((r.model for r in rows.values() if r.variant == "deeper"), None)
    heads = [deeper if v == "deeper" and deeper else VARIANTS[v] for v in variants]
    beside = ["ic-all"] if deeper and "ic-all" in measured else []
    lines = []
    for engine, batch in _order(rows):
        line = {key[1]: row for key, row in rows.items() if key[2:] == (engine, batch)}
        ratios = [_ratio(line[v].ratio) if v in line else _absent(family, v) for v in variants]
        against = [_ratio(line[v].to_deeper) if v in line else "" for v in beside]
        basic = _milliseconds(line["basic"].seconds) if "basic" in line else ""
        lines.append([f"{ENGINES[engine].label}, batch {batch}", basic, *ratios, *against])
        lines += _memory_lines(line, variants, family, len(beside))
    columns = ["engine", "basic", *heads, *(f"IC, every conv, to {deeper}" for _ in beside)]
    return Table(family.name, columns, lines, ["Times the basic network's; median of paired rounds, and quartiles."])


def _order(rows: Rows) -> list[tuple[str, int]]:
    engines = list(ENGINES)
    return sorted({(key[2], key[3]) for key in rows}, key=lambda pair: (engines.index(pair[0]), pair[1]))


def _memory_lines(line: dict[str, Row], variants: list[str], family: Family, padding: int) -> list[list[str]]:
    """What a training step keeps and takes, beside the basic network's; nothing for other engines."""
    basic = line["basic"].memory if "basic" in line else None
    if basic is None:
        return []

    def one(label: str, of: Callable[[Row], int]) -> list[str]:
        cells = [f"{of(line[v]) / of(line['basic']):.3f}" if v in line else _absent(family, v) for v in variants]
        return [f"– {label}", f"{of(line['basic']) / 2**20:.0f} MiB", *cells, *[""] * padding]

    return [
        one("saved for backward", lambda row: row.memory.saved if row.memory else 0),
        one("alive after forward", lambda row: row.memory.held if row.memory else 0),
        one("peak", lambda row: row.memory.peak if row.memory else 0),
    ]


def _absent(family: Family, variant: str) -> str:
    return "" if family.has(variant) else "not in timm"


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _milliseconds(seconds: float) -> str:
    """Three digits: 5.43 ms, 54.3 ms, 543 ms, 5430 ms."""
    ms = 1000 * seconds
    return f"{ms:.2f} ms" if ms < 9.995 else f"{ms:.1f} ms" if ms < 99.95 else f"{ms:.0f} ms"


def _conditions(rows: Rows) -> str:
    any_row = next(iter(rows.values()))
    rounds, dates = [r.rounds for r in rows.values()], sorted(r.date[:10] for r in rows.values())
    versions: dict[str, list[str]] = {}
    for row in rows.values():
        for name, version in row.environment.versions.items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    packages = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    return (
        f"{_where(any_row)}, {_span(rounds)} rounds, {_span(dates)}; {packages}. "
        f"Images of {_span([r.image_size for r in rows.values()])} pixels, float32."
    )


def _where(row: Row) -> str:
    cpu, threads = row.machine
    return f"{cpu}, {threads} threads"


def _span(values: list) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"
