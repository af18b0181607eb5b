"""Measurements as lines of JSON: written one by one, found again, and never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environment import Environment
from icnets.support.rounds import Ratio
from training_step import Memory

__all__ = ["Key", "Row", "append", "by_machine", "latest", "read"]

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Row:
    """One network in one engine at one batch size.

    Attributes:
        network, variant, engine, batch: the key. ``model`` is timm's name of what was run.
        seconds: median over ``rounds`` of the time of one call.
        ratio: to the family's basic network, in the same rounds.
        to_deeper: to the family's network of one size deeper, where it ran in the same rounds.
        memory: of a training step.
        environment: processor, threads, versions, sources.
        date: when it was measured, ISO 8601, UTC.
    """

    network: str
    variant: str
    engine: str
    batch: int
    model: str
    image_size: int
    seconds: float
    ratio: Ratio
    to_deeper: Ratio | None
    rounds: int
    memory: Memory | None
    environment: Environment
    date: str

    @property
    def key(self) -> Key:
        return self.network, self.variant, self.engine, self.batch

    @property
    def machine(self) -> tuple[str, int]:
        return self.environment.cpu, self.environment.threads

    def matches(self, environment: Environment) -> bool:
        """Whether it was measured on this machine and with these versions; ``sources`` may differ."""
        return self.machine == (environment.cpu, environment.threads) and (
            self.environment.versions == environment.versions
        )

    def to_json(self) -> str:
        return json.dumps(_rounded(asdict(self)))

    @classmethod
    def from_json(cls, line: str) -> Row:
        fields = json.loads(line)
        kinds = {"ratio": Ratio, "to_deeper": Ratio, "memory": Memory, "environment": Environment}
        return cls(**{k: kinds[k](**v) if k in kinds and v is not None else v for k, v in fields.items()})


def _rounded(value: Any) -> Any:
    """Five digits: more than any timing has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def read(path: Path) -> list[Row]:
    """The rows of a file, in its order; none if it doesn't exist."""
    if not path.exists():
        return []
    return [Row.from_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def append(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(row.to_json() + "\n" for row in rows)


def by_machine(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each machine in their order, the machine measured last first: no table mixes machines."""
    rows = list(rows)
    machines = dict.fromkeys(row.machine for row in reversed(rows))
    return [[row for row in rows if row.machine == machine] for machine in machines]


def latest(rows: Iterable[Row], needed: Iterable[Key] = ()) -> dict[Key, Row]:
    """The last row of each key, of the machine measured last among those that have all of ``needed``.

    Raises ValueError if there are rows, but no machine has all that is needed.
    """
    needed, machines = set(needed), by_machine(rows)
    found = [{row.key: row for row in own} for own in machines]
    whole = [own for own in found if needed <= own.keys()]
    if found and not whole:
        last, absent = machines[0][0].machine, ", ".join(map(str, sorted(needed - found[0].keys())))
        raise ValueError(f"no machine has all rows; {last} lacks {absent}: measure them, benchmarks/cpu.py")
    return whole[0] if whole else {}
