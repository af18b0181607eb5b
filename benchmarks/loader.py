"""Images a second of our training loader beside timm's own, on one folder of JPEG files.

    python benchmarks/imagenet_like.py OUT --classes 10 --train 60
    python benchmarks/loader.py OUT                   # a line each in benchmarks/results/loader.jsonl
    python benchmarks/loader.py OUT --auto-augment rand-m9-mstd0.5
    python benchmarks/loader.py --waiting             # how long a training step waits for images in memory

All loaders read the same files by the same transform in as many processes; every round is one epoch of each, in random
order, so that whatever else the machine does meets them all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader

import icnets
from environment import Environment
from icnets.data.data_module import ImageData
from icnets.support.rounds import Ratio, interleaved, paired_ratio

__all__ = ["Reading", "compare", "main", "waiting"]

OUT = Path(__file__).parent / "results" / "loader.jsonl"
_SCALE, _FLIP = 0.08, 0.5  # of the random crop's area, at least; of all images


@dataclass(frozen=True)
class Reading:
    """How the images are read, by all loaders."""

    size: int
    batch: int
    workers: int
    auto_augment: str | None = None

    def timm(self, root: Path, *, prefetcher: bool) -> Any:
        """timm's own loader of a folder; with the prefetcher, this process normalises whole batches of bytes."""
        return create_loader(
            create_dataset("", root=str(root / "train"), is_training=True),
            input_size=(3, self.size, self.size),
            batch_size=self.batch,
            is_training=True,
            use_prefetcher=prefetcher,
            scale=(_SCALE, 1.0),
            hflip=_FLIP,
            color_jitter=0.0,
            auto_augment=self.auto_augment,
            interpolation="bilinear",
            num_workers=self.workers,
            device=torch.device("cpu"),
        )

    def ours(self, root: Path) -> Any:
        """Our loader of a folder."""
        data = ImageData(
            root,
            image_size=self.size,
            batch_size=self.batch,
            workers=self.workers,
            min_scale=_SCALE,
            hflip=_FLIP,
            auto_augment=self.auto_augment,
        )
        return data.train_dataloader()


def _epoch(loader: Any) -> Callable[[], int]:
    return lambda: sum(len(target) for _, target in loader)


def compare(root: Path, reading: Reading, rounds: int) -> list[dict[str, Any]]:
    """A row for each loader: images a second, and how many for each one of timm's loaders in the same rounds.

    Raises:
        ValueError: an epoch isn't equally long for all of them.
    """
    loaders = {
        "folder": reading.ours(root),
        "timm": reading.timm(root, prefetcher=False),
        "timm, prefetcher": reading.timm(root, prefetcher=True),
    }
    counts = {name: _epoch(loader)() for name, loader in loaders.items()}
    times = interleaved({name: _epoch(loader) for name, loader in loaders.items()}, rounds, min_seconds=0)
    if len(set(counts.values())) != 1:
        raise ValueError(f"an epoch of the loaders has {counts} images; they must be the same")
    return [
        {
            "loader": name,
            **asdict(reading),
            "images": counts[name],
            "rounds": rounds,
            "images_per_second": float(f"{counts[name] / median(own):.4g}"),
            "to_timm": _rounded(paired_ratio(times["timm"], own)),
            "to_timm_prefetcher": _rounded(paired_ratio(times["timm, prefetcher"], own)),
        }
        for name, own in times.items()
    ]


def _rounded(ratio: Ratio) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(ratio).items()}


def waiting(*, size: int, batch: int, workers: int, rounds: int) -> dict[str, Any]:
    """A row: the part of an epoch in which the training loop waits for its images, which are in memory; by epochs."""
    data = ImageData(image_size=size, batch_size=batch, workers=workers)
    loader = data.train_dataloader()
    network = icnets.create_model(
        "ic_resnet18", ic=icnets.ICConfig(), num_classes=10, in_chans=1, channels=(16, 32, 64, 128)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    shares = [_share_waited(loader, network, optimizer) for _ in range(rounds + 1)][1:]
    low, middle, high = quantiles(shares, n=4, method="inclusive")
    return {
        "loader": "in memory",
        "size": size,
        "batch": batch,
        "workers": workers,
        "images": data.size("train"),
        "rounds": rounds,
        "waited": _rounded(Ratio(middle, low, high)),
    }


def _share_waited(loader: Any, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    waited, start = 0.0, time.perf_counter()
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return waited / (time.perf_counter() - start)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="OUT", type=Path, nargs="?", help="folder that imagenet_like.py wrote")
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--size", type=int, help="pixels; 224, or 16 with --waiting")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, help="2, or 0 with --waiting")
    parser.add_argument("--auto-augment")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=OUT)
    args = parser.parse_args(argv)
    if args.root is None and not args.waiting:
        parser.error("give OUT, or --waiting")
    environment = asdict(Environment.here(torch.get_num_threads()))
    if args.waiting:
        rows = [waiting(size=args.size or 16, batch=args.batch, workers=args.workers or 0, rounds=args.rounds)]
    else:
        workers = 2 if args.workers is None else args.workers
        rows = compare(args.root, Reading(args.size or 224, args.batch, workers, args.auto_augment), args.rounds)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with open(args.results, "a", encoding="utf-8") as file:
        for row in rows:
            print(json.dumps(row), flush=True)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(json.dumps({**row, "environment": environment, "date": date}) + "\n")


if __name__ == "__main__":
    main()
