"""What IC networks cost on the CPU: time in every engine, and time and memory of a training step.

python benchmarks/cpu.py --prepare                  # export and compile first, so that nothing else runs beside timing
python benchmarks/cpu.py                            # then time; rows that are there already are skipped
python benchmarks/cpu.py --networks resnet50 --engines eager training --again
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from cost_table import tables
from engines import ENGINES, Case
from environment import Environment, physical_cores
from icnets.support.rounds import interleaved, paired_ratio
from networks import FAMILIES, VARIANTS, Family
from prepare import forget, prepare
from rows import Key, Row, append, read
from training_step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
CACHE = ROOT / "runs" / "bench-cache"

# The short form: what `make bench` does.
QUICK = {
    "networks": ["resnet50"],
    "variants": ["basic", "ic-all", "ic-kxk", "deeper"],
    "engines": ["eager", "deployed", "onnx", "openvino", "training"],
    "batches": [1],
    "training_batches": [8],
    "rounds": 3,
    "out": ROOT / "runs" / "bench.jsonl",
}


@dataclass(frozen=True)
class Group:
    """Networks of one family in one engine at one batch size: what runs in the same rounds."""

    family: Family
    engine: str
    batch: int
    variants: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.family.name}, {ENGINES[self.engine].label}, batch {self.batch}"

    def key(self, variant: str) -> Key:
        return self.family.name, variant, self.engine, self.batch

    def case(self, variant: str, environment: Environment, cache: Path) -> Case:
        return Case(self.family, variant, self.batch, cache, environment.threads)


def groups(args: argparse.Namespace) -> Iterator[Group]:
    """Everything that was asked for and that there is."""
    for family in (FAMILIES[name] for name in args.networks):
        variants = tuple(v for v in VARIANTS if v in args.variants and family.has(v))
        for engine in args.engines:
            for batch in args.training_batches if ENGINES[engine].training else args.batches:
                yield Group(family, engine, batch, variants)


def wanted(group: Group, there: Set[Key]) -> Group:
    """Only what has no row ``there`` yet, and what that is compared with; no variants if nothing is missing."""
    missing = {v for v in group.variants if group.key(v) not in there}
    if missing:
        missing |= {"basic"} | {"deeper"} & set(group.variants)
    return Group(group.family, group.engine, group.batch, tuple(v for v in VARIANTS if v in missing))


def measure(group: Group, environment: Environment, rounds: int, cache: Path) -> list[Row]:
    """One row for each variant; the basic network must be among them."""
    cases = {v: group.case(v, environment, cache) for v in group.variants}
    steps = {v: ENGINES[group.engine].open(case) for v, case in cases.items()}
    times = interleaved(steps, rounds)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    for variant, step in steps.items():
        family = group.family
        rows.append(
            Row(
                network=family.name,
                variant=variant,
                engine=group.engine,
                batch=group.batch,
                model=family.deeper if variant == "deeper" else family.name,
                image_size=family.image_size,
                seconds=statistics.median(times[variant]),
                ratio=paired_ratio(times[variant], times["basic"]),
                to_deeper=paired_ratio(times[variant], times["deeper"]) if "deeper" in times else None,
                rounds=rounds,
                memory=step.memory() if isinstance(step, TrainingStep) else None,
                environment=environment,
                date=date,
            )
        )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/cpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="N", help="of timm")
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="V", help=", ".join(VARIANTS))
    add("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="E", help=", ".join(ENGINES))
    add("--batches", nargs="+", type=int, choices=[1, 8], default=[1, 8], metavar="B", help="1, 8")
    add(
        "--training-batches", nargs="+", type=int, choices=[1, 8], default=[1, 8], metavar="B", help="of training: 1, 8"
    )
    add("--rounds", type=int, default=15, help="default: 15")
    add("--threads", type=int, default=physical_cores(), help="default: the physical cores")
    add("--prepare", action="store_true", help="export and compile only")
    add("--again", action="store_true", help="measure what has a row, too")
    add("--quick", action="store_true", help="the short form: ResNet-50 and ResNet-101, 3 rounds, into runs/")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="default: benchmarks/results/cpu.jsonl")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="for artifacts; default: runs/bench-cache")
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    quick = parser.parse_known_args(argv)[0].quick
    if quick:
        parser.set_defaults(**QUICK, again=True)
    args = parser.parse_args(argv)
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    for engine in args.engines:
        if missing := ENGINES[engine].missing():
            parser.error(f"{engine} needs {', '.join(missing)}: pip install 'icnets[export]', or leave it out")
    return args


def _cache(folder: Path, environment: Environment) -> Path:
    """The part of ``folder`` for these sources, versions and threads; torch's compiler keeps its own there, too."""
    sources = [Path(__file__).with_name(name) for name in ("networks.py", "engines.py")]
    cache = folder / environment.digest(*sources)
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((cache / "inductor").resolve())
    return cache


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    environment = Environment.here(args.threads)
    cache = _cache(args.cache, environment)
    there = set() if args.again else _there(read(args.out), environment)
    todo = [group for g in groups(args) if (group := wanted(g, there)).variants]
    prepare([(g.engine, g.case(v, environment, cache)) for g in todo for v in g.variants], args.threads)
    measured: list[Row] = []
    for group in [] if args.prepare else todo:
        start = time.perf_counter()
        found = measure(group, environment, args.rounds, cache)
        measured += [row for row in found if row.key not in there]
        append(args.out, [row for row in found if row.key not in there])
        _say(f"{group}: {len(found)} networks, {args.rounds} rounds, {time.perf_counter() - start:.0f} s")
        forget()
    for table in [] if args.prepare else tables(measured if args.again else read(args.out)):
        print(table.plain())
    return 0


def _there(rows: Sequence[Row], environment: Environment) -> set[Key]:
    """Keys of the rows of this machine and these versions."""
    same = [row for row in rows if row.matches(environment)]
    if stale := sum(row.environment.sources != environment.sources for row in same):
        _say(f"{stale} rows are of other sources of icnets and are kept; --again measures them again")
    return {row.key for row in same}


if __name__ == "__main__":
    sys.exit(main())
