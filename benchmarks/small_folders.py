"""What `icnets fit` does with a small folder at its defaults: writes benchmarks/results/small_folders.jsonl.

A ResNet-18 on 280 images (64, 64) of four classes, of which `fit` keeps 202 to train and 36 to validate, for four
epochs: the basic network first, then IC + WLD from it by the documented command. Two minutes a pair on one core.

python benchmarks/small_folders.py                          # textures and gratings, seeds 0 to 3
python benchmarks/small_folders.py --images textures --seeds 1
"""

import argparse
import csv
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from environment import Environment

RESULTS = Path(__file__).parent / "results" / "small_folders.jsonl"
COMMON = ["--data.image_size", "64", "--trainer.max_epochs", "4"]


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
_folders = importlib.import_module("training.folders")
IMAGES: dict[str, Callable[[Path], Path]] = {"textures": _folders.write_textures, "gratings": _folders.write_gratings}


def ic_options(basic: str) -> list[str]:
    """The documented command for IC + WLD from the run ``basic``."""
    weights = f"runs/{basic}/checkpoints/best.safetensors"
    return ["--model.model", "ic_resnet18", "--model.init_from", weights, "--model.teacher", weights]


def last_epoch(run: Path) -> dict[str, float]:
    """The last line of a run's history.csv."""
    with open(run / "history.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    return {key: float(value or "nan") for key, value in last.items()}


def _fit(name: str, root: Path, seed: int, work: Path, model: list[str]) -> dict[str, float | str]:
    command = [sys.executable, "-m", "icnets.cli", "fit", "--name", name, *model, "--data.root", str(root)]
    command += [*COMMON, "--seed_everything", str(seed)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    last = last_epoch(work / "runs" / name)
    said = next((line for line in done.stdout.splitlines() if "images a step" in line), "")
    return {"val_loss": last["val/loss"], "val_top1": last["val/top1"], "said": said.split("; ")[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="*", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3])
    args = parser.parse_args()
    for kind in args.images:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                root = IMAGES[kind](Path(folder, "images"))
                basic = _fit("basic", root, seed, Path(folder), ["--model.model", "resnet18"])
                ic = _fit("ic", root, seed, Path(folder), ic_options("basic"))
            row = {
                "images": kind,
                "seed": seed,
                "basic": basic,
                "ic_wld": ic,
                "environment": asdict(Environment.here(1)),
            }
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
