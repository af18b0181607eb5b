"""Does a budget of time hold? Networks are converted with ``max_slowdown``, and what came of it is measured anew.

python benchmarks/max_slowdown.py                                # every network, engine and limit: hours
python benchmarks/max_slowdown.py --networks resnet50 --engines eager --limits 1.05

Beside each budget stand the presets of layers: the largest that fits has no more units than the budget found.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from environment import Environment, physical_cores
from icnets import ICConfig, convert_
from icnets.convert.config import CHOICES
from icnets.convert.slowdown import Timing
from icnets.convert.surgery import choose, trial
from networks import FAMILIES, build

RESULTS = Path(__file__).resolve().parent / "results" / "max_slowdown.jsonl"
NETWORKS = ("resnet50", "mobilenetv3_large_100", "tf_efficientnet_lite0", "convnext_tiny", "densenet121")
PRESETS = CHOICES["layers"]


def row(name: str, engine: str, limit: float, environment: Environment) -> dict[str, Any]:
    """One budget: what was chosen, what was measured for it, and that ratio once more, beside the presets that fit."""
    family = FAMILIES[name]
    basic, config = build(family, "basic"), ICConfig(max_slowdown=limit, engine=engine)
    size, seed = family.image_size, torch.Generator().manual_seed(1)
    x, ic = torch.randn(8 if engine == "training" else 1, 3, size, size, generator=seed), build(family, "basic")
    try:
        report = convert_(ic, config, optimizers=(), example_input=x)
        names = report.converted
        found: dict[str, Any] | str = asdict(report.slowdown) if report.slowdown else ""
    except ValueError as error:
        names, found = [], str(error)
    timing = Timing(partial(trial, basic, config), engine, x)
    again = asdict(timing(names, longer=2)[0]) if names else None
    counts = {preset: len(choose(basic, ICConfig(layers=preset), None)[0]) for preset in PRESETS}
    larger = [preset for preset in PRESETS if counts[preset] > len(names)]
    missed = {p: asdict(timing(choose(basic, ICConfig(layers=p), None)[0])[0]) for p in larger}
    return {
        "network": name,
        "engine": engine,
        "limit": limit,
        "batch": len(x),
        "units": len(names),
        "found": found,
        "again": again,
        "presets": counts,
        "larger_presets": missed,
        "environment": asdict(environment),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--engines", nargs="+", default=["eager", "onnxruntime", "openvino"])
    parser.add_argument("--limits", nargs="+", type=float, default=[1.02, 1.05, 1.10])
    parser.add_argument("--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = Environment.here(args.threads)
    for limit in args.limits:
        for engine in args.engines:
            for name in args.networks:
                found = row(name, engine, limit, environment)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                ratio, again = found["found"], found["again"]
                told = f"x{ratio['ratio']['median']:.3f} in {ratio['seconds']:.0f} s" if again else ratio
                anew = f"; anew x{again['median']:.3f}" if again else ""
                fits = [p for p, r in found["larger_presets"].items() if r["median"] <= limit]
                print(
                    f"{name}, {engine}, x{limit}: {found['units']} units, {told}{anew}; larger presets that fit: {fits}"
                )
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
