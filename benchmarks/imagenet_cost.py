"""What the ImageNet experiment would cost: published GPU throughput times the step-time ratios measured on the CPU.

python benchmarks/imagenet_cost.py              # rewrite the tables of docs/imagenet.md
python benchmarks/imagenet_cost.py --measure    # measure the memory of activations first, without a GPU

results/imagenet.json holds what others published, with its source; results/cpu.jsonl what benchmarks/cpu.py measured;
results/imagenet_memory.json what --measure writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rows
from icnets import ICConfig, create_model
from icnets.profile.measure import memory_for_backward
from icnets.support.tables import Table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "imagenet.md"
RESULTS = ROOT / "benchmarks" / "results"
START = "<!-- imagenet tables: written by benchmarks/imagenet_cost.py -->"
END = "<!-- end of imagenet tables -->"

TRAIN, VAL = 1_281_167, 50_000
EPOCHS = {"plain": 90, "strong": 300}
BATCH, CPU_BATCH = 256, 8
PRECISION = "bf16-mixed"
NETWORKS = ("resnet50", "resnet101", "resnext50_32x4d", "mobilenetv2_100")
METHODS = {"basic": "basic", "ic": "IC", "ic_wld": "IC + WLD"}
OPTIMIZER_STATES = {"plain": 1, "strong": 2}  # SGD's momentum; LAMB's two moments
_VAL_SPEED = 3  # a forward pass alone is about three times as fast as a step


def _keys(network: str) -> tuple[rows.Key, rows.Key, rows.Key]:
    """Of the basic network's training step, of IC's, and of the basic network's forward pass.

    ResNet-101's IC form wasn't measured: ResNet-50's ratio stands in.
    """
    family, basic = ("resnet50", "deeper") if network == "resnet101" else (network, "basic")
    step, forward = ((family, basic, engine, CPU_BATCH) for engine in ("training", "eager"))
    return step, (family, "ic-all", "training", CPU_BATCH), forward


@dataclass(frozen=True)
class Costs:
    """What is known: the measured rows, the published numbers, bytes of activations by network and method."""

    measured: Mapping[rows.Key, rows.Row]
    published: Mapping[str, Any]
    memory: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path = RESULTS) -> Costs:
        published, memory = (
            json.loads((folder / name).read_text()) for name in ("imagenet.json", "imagenet_memory.json")
        )
        needed = [key for network in NETWORKS for key in _keys(network)]
        return cls(rows.latest(rows.read(folder / "cpu.jsonl"), needed), published, memory)

    def seconds(self, network: str, method: str) -> float:
        """Of a training step on the CPU; under WLD with the teacher's forward pass."""
        step, ic, forward = (self.measured[key] for key in _keys(network))
        if method == "basic":
            return step.seconds
        seconds = step.seconds * ic.ratio.median
        return seconds if method == "ic" else seconds + forward.seconds

    def speed(self, network: str, method: str, gpus: int) -> float:
        """Images per second in training: the published ResNet-50's, by the ratio of the steps on the CPU."""
        known = {int(count): value for count, value in self.published["throughput"]["images_per_second"].items()}
        if gpus not in known:
            known[gpus] = known[8] * gpus / 8 * self.published["nodes"]["efficiency"]
        return known[gpus] * self.seconds("resnet50", "basic") / self.seconds(network, method)

    def hours(self, network: str, method: str, recipe: str, gpus: int) -> float:
        """Of a whole training with a validation after each epoch."""
        images = EPOCHS[recipe] * (TRAIN + VAL / _VAL_SPEED)
        return images / self.speed(network, method, gpus) / 3600


def speeds(costs: Costs) -> Table:
    """Images per second, hours and GPU-hours of each network and method."""
    columns = ["", "images/s, 1 / 8 / 64 GPUs"]
    for recipe, epochs in EPOCHS.items():
        columns += [f"{recipe}, {epochs} epochs: hours on 1 / 8 / 64", "GPU-hours on 8"]
    lines = []
    for network in NETWORKS:
        for method, label in METHODS.items():
            line = [f"{network}, {label}", _three(costs.speed(network, method, gpus) for gpus in (1, 8, 64))]
            for recipe in EPOCHS:
                hours = [costs.hours(network, method, recipe, gpus) for gpus in (1, 8, 64)]
                line += [_three(hours), f"{8 * hours[1]:,.0f}"]
            lines.append(line)
    published = costs.published["throughput"]
    return Table(f"{published['gpu']}, expected, not measured", columns, lines, [])


def memory(costs: Costs) -> Table:
    """What a GPU holds at a batch of 256, in GiB."""
    lines = []
    for network in NETWORKS:
        for method in ("basic", "ic"):
            found = costs.memory[network][method]
            activations = (found["fixed"] + BATCH * found["per_image"]) / 2**30
            weights = 4 * found["parameters"] / 2**30
            totals = [activations + weights * (2 + states) for states in OPTIMIZER_STATES.values()]
            teacher = 4 * costs.memory[network]["basic"]["parameters"] / 2**30
            lines.append(
                [f"{network}, {METHODS[method]}", f"{found['parameters'] / 1e6:.1f} M", f"{activations:.1f}",
                 *(f"{total:.1f}" for total in totals), f"+{teacher:.2f}" if method == "ic" else ""]
            )  # fmt: skip
    columns = ["", "parameters", "activations", "plain (SGD), in all", "strong (LAMB), in all", "a teacher"]
    return Table(f"GiB a GPU, {BATCH} images of 224 pixels on each, {PRECISION}, eager", columns, lines, [])


def markdown(costs: Costs) -> str:
    """Both tables and where their numbers are from."""
    published, newer, older = (costs.published[name] for name in ("throughput", "newer", "older"))
    faster = newer["minutes"]["A100"] / newer["minutes"]["H100"]
    slower = older["images_per_second"]["1"] / published["images_per_second"]["1"]
    first = published["images_per_second"]
    processor, _ = next(iter(costs.measured.values())).machine
    sources = (
        f"ResNet-50's own images/s on 1 and 8 GPUs are [NVIDIA's]({published['source']}) ({first['1']:,} and "
        f"{first['8']:,}; {published['when']}). 64 GPUs: eight times the eight, times "
        f"{costs.published['nodes']['efficiency']} (an assumption). The other rows are these divided by the ratio of "
        f"the training steps that we measured **on a CPU** ({processor}, batch {CPU_BATCH}, float32, with the compiled "
        "kernels; [cost](cost.md)); for WLD, the teacher's forward pass is added through the whole training. "
        "IC-ResNet-101's ratio is IC-ResNet-50's. Between networks such ratios carry over poorly, MobileNetV2's most "
        "of all. Between basic and IC they are what a fused pass costs; in mixed precision eager mode makes several in "
        "its place, so expect more. Other GPUs, for ResNet-50: "
        f"{older['gpu']} ×{slower:.2f} ([same source]({older['source']})), {newer['gpu']} ×{faster:.1f} "
        f"([MLPerf Training]({newer['source']}), 16 GPUs)."
    )
    return "\n\n".join([speeds(costs).markdown().strip(), sources, memory(costs).markdown().strip()])


def _three(values: Any) -> str:
    return " / ".join(f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" for value in values)


def updated(page: str, costs: Costs) -> str:
    """docs/imagenet.md with its tables made anew."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{markdown(costs)}\n\n{END}{tail}"


def activation_bytes(network: torch.nn.Module, sample: torch.Tensor) -> tuple[int, int]:
    """Bytes that a forward pass in bfloat16 leaves for backward: fixed ones, and those of each image.

    Measured on two and on three images: weights in half precision are kept once, whatever the batch, and one image
    alone has no statistics where a layer is down to a single place.

    Args:
        network: on the CPU, in train mode.
        sample: images ``(3, C, H, W)``.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        two, three = memory_for_backward(network, sample[:2]), memory_for_backward(network, sample)
    return max(3 * two - 2 * three, 0), three - two


def measure() -> dict[str, Any]:
    """Parameters and bytes of activations of each network, basic and IC."""
    found: dict[str, Any] = {}
    for network in NETWORKS:
        found[network] = {}
        for method, ic in (("basic", None), ("ic", ICConfig(layers="all"))):
            model = create_model(network, ic=ic).train()
            sample = torch.zeros(3, 3, 224, 224)
            fixed, per_image = activation_bytes(model, sample)
            parameters = sum(p.numel() for p in model.parameters())
            found[network][method] = {"parameters": parameters, "fixed": fixed, "per_image": per_image}
    return found


def main(argv: list[str]) -> None:
    if "--measure" in argv:
        (RESULTS / "imagenet_memory.json").write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), Costs.read()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
