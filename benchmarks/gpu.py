"""What IC networks cost on a GPU: time, throughput and peak memory of training steps and inference; our kernels alone.

python benchmarks/gpu.py                            # what has no row yet, most important first, for 9 minutes
python benchmarks/gpu.py --minutes 60               # all of it
python benchmarks/gpu.py --networks resnet50 --engines eager compile --modes train --batches 256 --again

In half precision (--dtype), channels last: training under autocast with SGD; inference deployed (batch norms folded, IC
units in their deployed form), weights in half precision. Engine "triton": eager with our Triton kernels. Every ratio
is of the same rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from environment import Environment
from gpu_kernels import copy_bandwidth, kernel_rows
from icnets import fuse_
from icnets.support.rounds import interleaved, paired_ratio
from icnets.unit.kernels import gpu
from networks import FAMILIES, VARIANTS, Family, build

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.jsonl"
NETWORKS = {
    **{name: FAMILIES[name] for name in ("resnet50", "resnext50_32x4d", "mobilenetv2_100")},
    "efficientnet_b0": Family("efficientnet_b0", "efficientnet_b1"),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    "graphs": {"mode": "reduce-overhead"},
}
ENGINES = ("eager", "triton", *COMPILED)
Row = dict[str, Any]


class Training:
    """Forward under autocast, cross entropy, backward, SGD with momentum; one call is one step."""

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype, options: dict[str, Any] | None) -> None:
        self.model, self.x, self.dtype = model.train(), x, dtype
        self.run: Any = self.model if options is None else torch.compile(self.model, **options)
        self.labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        with torch.autocast(self.x.device.type, self.dtype):
            loss = F.cross_entropy(self.run(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Inference:
    """A forward pass of the deployed network."""

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype, options: dict[str, Any] | None) -> None:
        fuse_(model.eval(), x[:1])
        self.x, model = x.to(dtype), model.to(dtype)
        self.run: Any = model if options is None else torch.compile(model, **options)

    @torch.inference_mode()
    def __call__(self) -> None:
        self.run(self.x)


MODES: dict[str, Callable[..., Callable[[], None]]] = {"train": Training, "inference": Inference}


def groups(args: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Network, mode, engine and batch: the networks that users have first, the largest batch first."""
    for name in args.networks:
        for batch in sorted(args.batches, reverse=True):
            for engine in args.engines:
                for mode in args.modes:
                    yield name, mode, engine, batch


def measure(group: tuple[str, str, str, int], args: argparse.Namespace, bandwidth: float) -> list[Row]:
    """A row for each variant of a group; those that fail, for want of memory as a rule, say why."""
    name, mode, engine, batch = group
    family, device = NETWORKS[name], torch.device(args.device)
    x = torch.randn(batch, 3, args.image_size, args.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    steps, rows = {}, {}
    for variant in (v for v in VARIANTS if v in args.variants and family.has(v)):
        rows[variant] = {"network": name, "mode": mode, "engine": engine, "batch": batch, "variant": variant}
        try:
            step = _step(replace(family, image_size=args.image_size), variant, mode, engine, x, args)
            rows[variant]["peak"] = _peak(step, device)
            steps[variant] = step
        except (torch.OutOfMemoryError, RuntimeError) as error:
            rows[variant]["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        _forget(device)
    times = interleaved(steps, args.rounds, args.seconds, device=device)
    for variant, own in times.items():
        seconds = statistics.median(own)
        rows[variant] |= {"seconds": seconds, "images_per_second": batch / seconds}
        for other, key in (("basic", "ratio"), ("deeper", "to_deeper")):
            if other in times:
                rows[variant][key] = asdict(paired_ratio(own, times[other]))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    common = {"dtype": args.dtype, "image_size": args.image_size, "copy_bandwidth": bandwidth, "date": date}
    return [{**row, **common, "rounds": args.rounds, "device": _name(device)} for row in rows.values()]


def _step(family: Family, variant: str, mode: str, engine: str, x: Tensor, args: argparse.Namespace) -> Any:
    model = build(family, variant).to(x.device).to(memory_format=torch.channels_last)
    step = MODES[mode](model, x, DTYPES[args.dtype], COMPILED.get(engine))

    def call() -> None:
        available, gpu._available = gpu._available, engine == "triton"
        try:
            step()
        finally:
            gpu._available = available

    return call


def _peak(step: Callable[[], None], device: torch.device) -> int | None:
    for _ in range(3):  # compiles, tunes, allocates what stays
        step()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("kernel", "network", "mode", "engine", "batch", "dtype", "image_size", "device"))


def read(path: Path) -> list[Row]:
    """The rows of a file; none if it doesn't exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
            file.write(json.dumps({**rounded, "environment": environment}) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="N", help=", ".join(NETWORKS))
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="V", help=", ".join(VARIANTS))
    add("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="E", help=", ".join(ENGINES))
    add("--modes", nargs="+", choices=list(MODES), default=list(MODES), metavar="M", help=", ".join(MODES))
    add("--batches", nargs="+", type=int, default=[1, 64, 256], metavar="B", help="default: 1 64 256")
    add("--dtype", choices=list(DTYPES), default="bfloat16")
    add("--image-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    add("--rounds", type=int, default=11, help="default: 11")
    add("--seconds", type=float, default=0.1, help="least time of a step's turn in a round; default: 0.1")
    add("--minutes", type=float, default=9.0, help="no group is begun after; default: 9")
    add("--device", default="cuda", help="default: cuda")
    add("--again", action="store_true", help="measure what has a row, too")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="default: benchmarks/results/gpu.jsonl")
    args = parser.parse_args(argv)
    if "basic" not in args.variants:
        parser.error(f"--variants is {' '.join(args.variants)}; basic, which ratios are to, must be among them")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is {args.device}, and torch sees no GPU")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    start, device = time.monotonic(), torch.device(args.device)
    environment = asdict(Environment.here(torch.get_num_threads()))
    there = set() if args.again else {_key(row) for row in read(args.out)}
    bandwidth = copy_bandwidth(device)
    rows = [{**row, "device": _name(device), "copy_bandwidth": bandwidth} for row in kernel_rows(device, args)]
    _append(args.out, [row for row in rows if _key(row) not in there], environment)
    for group in groups(args):
        own = {"network": group[0], "mode": group[1], "engine": group[2], "batch": group[3]}
        if _key({**own, "dtype": args.dtype, "image_size": args.image_size, "device": _name(device)}) in there:
            continue
        if time.monotonic() - start > 60 * args.minutes:
            print(f"{args.minutes:g} minutes are over; the same command goes on", file=sys.stderr)
            break
        measured = measure(group, args, bandwidth)
        _append(args.out, measured, environment)
        said = [f"{r['variant']} {r['ratio']['median']:.3f}" for r in measured if "ratio" in r]
        failed = [f"{r['variant']} failed: {r['failed']}" for r in measured if "failed" in r]
        print(
            f"{time.monotonic() - start:4.0f} s  {' '.join(map(str, group))}: {', '.join([*said, *failed])}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
