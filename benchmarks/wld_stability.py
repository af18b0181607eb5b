"""At which weight does weak logit distillation train as safely as cross-entropy alone? Writes wld_stability.jsonl.

With s and t the logits of student and teacher, the gradient of T²·KL with respect to s is
T·(softmax(s/T) − softmax(t/T)): up to 2T in the L1 norm, where that of cross-entropy, softmax(s) − onehot, is up to 2.
So a weight of 1/T bounds the distillation by what cross-entropy may have, and both together by twice that: hence the
doubled rate below.

**The rule, written down before the results.** Each setting is trained at multiples m of its learning rate, with weights
0 (no distillation), 0.25, 0.5 and 1, and three seeds. A run *diverged* if its loss was no finite number, or its
validation loss at the end is above guessing, ln(classes). A cell (setting, weight, m) is *stable* if no seed of it
diverged and its mean top-1 is no more than 3 percentage points below that of weight 0 at the same m. A weight *passes*
if, wherever weight 0 is stable at m, the weight is stable at m and at 2m. Cells in which nothing is stable, weight 0
included, don't count: there the rate is too high for anything. The largest weight that passes becomes the default; if
none does, the one with the fewest unstable cells, the smaller in a tie. Beside that: the mean top-1 at m = 1, so that
nothing is lost of what the distillation is for.

Settings: ``digits, scratch`` (network and rate of recipes/demo.yaml, ten epochs, not clipped), ``digits, warm``
(fine-tuning as by default), ``solar, warm, no clipping`` (300 photographs of solar cells at 64 pixels, a small
ResNet-18 trained on them, two epochs). ``GRID`` has the weights and multiples of each; after the first seed it was cut
down to what the machine had time for. ``warm`` is the documented command: the IC network starts from the trained basic
network by "gain", which also teaches. The further questions, new_lr and AdamW, are in ``plan``, with ``lite0``:
EfficientNet-Lite0 with ImageNet weights, fine-tuned on the same photographs for two epochs, clipped.

    python benchmarks/wld_stability.py            # what is missing; about 15 minutes on one core
    python benchmarks/wld_stability.py --table    # the cells, and which weight passes
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from environment import Environment
from icnets import DistillationSchedule, ICConfig, Teacher, WeakLogitDistillation, convert_
from icnets.training.optimization import Optimization, make_optimizer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "wld_stability.jsonl"
WEIGHTS, MULTIPLES, SEEDS = (0.0, 0.25, 0.5, 1.0), (1, 2, 4, 8), (0, 1, 2)
MARGIN = 0.03  # of top-1

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


@dataclass(frozen=True)
class Setting:
    """Images, network, and how the IC network is trained; ``lr`` is that of m = 1."""

    data: str
    lr: float
    clip: float | None
    epochs: int
    warm: bool = True
    optimizer: Any = "sgd"


@dataclass(frozen=True)
class Run:
    """One training: the key of a line."""

    setting: str
    weight: float
    multiple: float
    seed: int
    new_lr: float = 1.0


SETTINGS = {
    "digits, scratch": Setting("digits", 0.1, None, 10, warm=False),
    "digits, warm": Setting("digits", 0.01, 1.0, 6),
    "solar, warm, no clipping": Setting("solar", 0.01, None, 2),
    "lite0": Setting("lite0", 0.01, 1.0, 2),
    "lite0, AdamW": Setting("lite0", 0.0001, 1.0, 2, optimizer="adamw"),
}
BATCH = {"digits": 50, "solar": 15, "lite0": 30}
BASIC_EPOCHS = {"digits": 20, "solar": 6, "lite0": 2}


# What decides: each setting's weights and multiples. Photographs cost most, so they have fewer.
GRID: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "digits, scratch": (WEIGHTS, MULTIPLES),
    "digits, warm": ((0.0, 0.25, 1.0), (1, 8)),
    "solar, warm, no clipping": (WEIGHTS, (4, 8)),
}


def plan() -> Iterator[Run]:
    """All runs, a seed at a time: the cells that decide, then those of new_lr and AdamW."""
    for name, (weights, multiples) in GRID.items():
        for seed, weight, multiple in product(SEEDS, weights, multiples):
            yield Run(name, weight, multiple, seed)
        if name == "digits, warm":
            for seed, weight, multiple in product(SEEDS, (0.0, 0.25), multiples):
                yield Run(name, weight, multiple, seed, new_lr=0.1)
            for seed in SEEDS:
                yield Run("lite0", 0.25, 1, seed)
                yield Run("lite0", 0.25, 1, seed, new_lr=0.1)
                yield Run("lite0, AdamW", 0.25, 1, seed, new_lr=0.1)
                yield Run("lite0", 0.25, 4, seed)
                yield Run("lite0", 0.25, 4, seed, new_lr=0.1)


# Images: 300 to train on and the validation part, normalised.


@cache
def images(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y to train on and x, y to validate, of ``seed``."""
    if kind == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        x, y = torch.from_numpy(found.images).float().unsqueeze(1) / 16, torch.from_numpy(found.target).long()
        x = F.interpolate(x, size=16, mode="bilinear")
    else:
        from studies.solar import SolarCells

        data = SolarCells(image_size=64, cache=ROOT / "runs" / "data")
        splits = data.splits()
        x, y = (torch.cat([part[i] for part in (splits.train, splits.val, splits.test)]) for i in (0, 1))
        x = x.float() / 255
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, val = order[:300], order[300 : 1100 if kind == "digits" else 700]
    std, mean = torch.std_mean(x[train])
    x = (x - 0.5) / 0.5 if kind == "lite0" else (x - mean) / std
    x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last) if kind == "lite0" else x
    return x[train], y[train], x[val], y[val]


def augmented(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Photographs are flipped, digits shifted by a pixel."""
    if kind == "digits":
        down, right = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
        return x.roll((down, right), (2, 3))
    for axis in (2, 3):
        flips = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flips.view(-1, 1, 1, 1), x.flip(axis), x)
    return x.contiguous(memory_format=torch.channels_last) if kind == "lite0" else x


def basic_network(kind: str) -> nn.Module:
    """As it is before any of our training."""
    if kind == "lite0":
        model, _ = importlib.import_module("trained.networks").lite0()
        model.reset_classifier(2)
        return model.to(memory_format=torch.channels_last)
    channels, classes = ([16, 32, 64, 128], 10) if kind == "digits" else ([8, 16, 32, 64], 2)
    options: dict[str, Any] = {"channels": channels, "stem_type": "deep", "stem_width": 8, "in_chans": 1}
    return timm.create_model("resnet18", num_classes=classes, **options)


# Training and evaluation.


def train(
    network: nn.Module, loss: WeakLogitDistillation, teacher: Teacher | None, setting: Setting, lr: float, run: Run
) -> bool:
    """Trains in place; returns whether all losses were finite, and stops at the first that isn't."""
    x, y, *_ = images(setting.data, run.seed)
    generator, batch = torch.Generator().manual_seed(run.seed), BATCH[setting.data]
    steps = setting.epochs * (len(x) // batch)
    options = Optimization(setting.optimizer, lr=lr, new_lr=run.new_lr)
    optimizer, schedule = make_optimizer(network, options, total=steps)
    network.train()
    step = 0
    for _ in range(setting.epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            part, progress = augmented(x[index], setting.data, generator), step / steps
            taught = teacher(part) if teacher is not None and loss.needs_teacher(progress) else None
            value = loss(network(part), taught, y[index], progress)
            if not math.isfinite(float(value.detach())):
                return False
            optimizer.zero_grad()
            value.backward()
            if setting.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), setting.clip)
            optimizer.step()
            schedule.step()
            step += 1
    torch.optim.swa_utils.update_bn(x.split(100), network)  # as fit does after short epochs
    return True


@cache
def basic_top1(kind: str, seed: int) -> float:
    return evaluate(trained(kind, seed), kind, seed)[1]


@torch.no_grad()
def evaluate(network: nn.Module, kind: str, seed: int) -> tuple[float, float]:
    """Validation loss and top-1."""
    *_, x, y = images(kind, seed)
    network.eval()
    logits = torch.cat([network(part) for part in x.split(100)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())


@cache
def trained(kind: str, seed: int) -> nn.Module:
    """The basic network of ``seed``, which teaches, and from which the warm settings start."""
    torch.manual_seed(seed)
    network = basic_network(kind)
    fine_tunes = kind == "lite0"
    setting = Setting(kind, 0.0, 1.0 if fine_tunes else None, BASIC_EPOCHS[kind])
    lr = 0.01 if fine_tunes else 0.1
    if not train(network, WeakLogitDistillation(), None, setting, lr, Run("basic", 0.0, 1, seed)):
        raise SystemExit(f"the basic network of {kind}, seed {seed}, diverged")
    print(f"basic {kind}, seed {seed}: {evaluate(network, kind, seed)[1]:.1%}", flush=True)
    return network.eval()


def measure(run: Run) -> dict[str, Any]:
    """The line of one run."""
    setting = SETTINGS[run.setting]
    basic = trained(setting.data, run.seed)
    begin = time.monotonic()
    torch.manual_seed(run.seed)
    network = copy.deepcopy(basic) if setting.warm else basic_network(setting.data)
    convert_(network, ICConfig(warm_start="gain") if setting.warm else ICConfig())
    loss = WeakLogitDistillation(schedule=DistillationSchedule(weight=run.weight))
    teacher = Teacher(copy.deepcopy(basic))
    finite = train(network, loss, teacher, setting, setting.lr * run.multiple, run)
    val_loss, top1 = evaluate(network, setting.data, run.seed) if finite else (math.inf, 0.0)
    classes = 10 if setting.data == "digits" else 2
    good = finite and math.isfinite(val_loss)
    return {
        **asdict(run),
        "lr": setting.lr * run.multiple,
        "optimizer": setting.optimizer,
        "clip": setting.clip,
        "val_loss": round(val_loss, 4) if good else None,
        "val_top1": round(top1, 4),
        "basic_top1": round(basic_top1(setting.data, run.seed), 4),
        "diverged": not (good and val_loss <= math.log(classes)),
        "seconds": round(time.monotonic() - begin, 1),
    }


# What came out.


def key(line: dict[str, Any]) -> Run:
    return Run(*(line[name] for name in ("setting", "weight", "multiple", "seed", "new_lr")))


def read() -> dict[Run, dict[str, Any]]:
    """The lines of the file by their keys."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    found = [json.loads(line) for line in lines]
    return {key(line): line for line in found}


Cells = dict[tuple[str, float, float, float], tuple[int, float]]


def cells(lines: dict[Run, dict[str, Any]]) -> Cells:
    """Runs that diverged, and mean top-1, by setting, weight, m and new_lr; only where all seeds are there."""
    found: dict[tuple[str, float, float, float], list[dict[str, Any]]] = {}
    for run, line in lines.items():
        found.setdefault((run.setting, run.weight, run.multiple, run.new_lr), []).append(line)
    return {
        name: (sum(line["diverged"] for line in own), sum(line["val_top1"] for line in own) / len(own))
        for name, own in found.items()
        if len(own) == len(SEEDS)
    }


def stable(found: Cells, setting: str, weight: float, multiple: float) -> bool:
    diverged, top1 = found[setting, weight, multiple, 1.0]
    return not diverged and top1 >= found[setting, 0.0, multiple, 1.0][1] - MARGIN


def failures(found: Cells, weight: float) -> list[str]:
    """The cells for which ``weight`` doesn't pass, by the rule above."""
    bad = []
    for setting, (weights, multiples) in GRID.items():
        if weight not in weights:
            continue
        # A recipe that is stable at m must be so at m and 2m.
        whole = [m for m in multiples if all((setting, w, m, 1.0) in found for w in weights)]
        safe = [m for m in whole if stable(found, setting, 0.0, m)]
        asked = [m for m in whole if m in safe or m / 2 in safe]
        for m in asked:
            if any(stable(found, setting, w, m) for w in weights) and not stable(found, setting, weight, m):
                bad.append(f"{setting} × {m}")
    return bad


def chosen(found: Cells) -> float:
    """The weight that the rule makes the default."""
    bad = {weight: len(failures(found, weight)) for weight in WEIGHTS[1:]}
    passing = [weight for weight, count in bad.items() if not count]
    return max(passing) if passing else min(bad, key=lambda weight: (bad[weight], weight))


def table() -> str:
    """Mean top-1 and, in brackets, how many seeds diverged: a row for each setting and weight, a column for each m."""
    found = cells(read())
    rows = [f"{'setting, weight, new_lr':<42}" + "".join(f"{f'× {m}':>12}" for m in MULTIPLES)]
    for setting, weight, new_lr in dict.fromkeys((s, w, n) for s, w, _, n in found):
        row = f"{f'{setting}, {weight:g}, {new_lr:g}':<42}"
        for m in MULTIPLES:
            diverged, top1 = found.get((setting, weight, m, new_lr), (0, math.nan))
            shown = f"{top1:.1%}" + (f" ({diverged})" if diverged else "")
            row += f"{'' if math.isnan(top1) else shown:>12}"
        rows.append(row)
    verdicts = [f"weight {w:g}: {', '.join(failures(found, w)) or 'passes'}" for w in WEIGHTS[1:]]
    return "\n".join([*rows, *verdicts])


def rows_of_the_docs() -> list[str]:
    """Mean top-1 of ``digits, scratch`` in %, as docs/train.md has it."""
    found, name = cells(read()), "digits, scratch"
    return [
        f"| {weight:g} | " + " | ".join(f"{found[name, weight, m, 1.0][1]:.1%}"[:-1] for m in MULTIPLES) + " |"
        for weight in WEIGHTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what the file says")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    torch.set_num_threads(1)
    known, environment = read(), asdict(Environment.here(1))
    for run in plan():
        if run in known or run.setting not in args.settings:
            continue
        line = measure(run)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"environment": environment}) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
