"""``icnets profile NAME``: what a network costs as basic and as IC network, beside a deeper one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.convert.surgery import ICConfig
from icnets.profile.measure import (
    Count,
    Latency,
    count_macs,
    count_parameters,
    measure_latency,
    memory_for_backward,
)
from icnets.support.tables import Table, human, show
from icnets.support.text import first_line
from icnets.unit.kernels import native

__all__ = ["Profile", "conditions", "kernels_note", "main", "profile", "profile_table", "require_input"]


@dataclass(frozen=True)
class Profile:
    """Costs of one network: MACs and times per image, bytes per batch; ratios are to the basic network."""

    name: str
    parameters: Count
    macs: Count
    inference: Latency
    training: Latency
    memory_bytes: int
    memory_ratio: float


def profile(
    models: Mapping[str, nn.Module], sample: Tensor, *, rounds: int = 11, threads: int | None = None
) -> list[Profile]:
    """Measures ``models`` on ``sample`` ``(N, C, H, W)``; the first is the one that ratios are taken to.

    Raises ValueError as :func:`icnets.profile.measure.measure_latency` does.
    """
    inference = measure_latency(models, sample, rounds=rounds, threads=threads)
    training = measure_latency(models, sample, rounds=rounds, threads=threads, training=True)
    memory = {name: memory_for_backward(model, sample) for name, model in models.items()}
    first = memory[next(iter(models))]
    return [
        Profile(
            name,
            count_parameters(model),
            count_macs(model, sample),
            inference[name],
            training[name],
            memory[name],
            memory[name] / max(first, 1),
        )
        for name, model in models.items()
    ]


def profile_table(profiles: Sequence[Profile], sample: Tensor) -> Table:
    """The profiles as a table; each time and each memory stands with its ratio to the first row's."""

    def counted(count: Count) -> str:
        return f"{human(count.total)} ({human(count.ic)})" if count.ic else human(count.total)

    def timed(latency: Latency) -> str:
        return f"{latency.ms_per_image:.3g} (×{latency.ratio:.2f})"

    rows = [
        (
            p.name,
            counted(p.parameters),
            counted(p.macs),
            timed(p.inference),
            timed(p.training),
            f"{p.memory_bytes / 2**20:.1f} (×{p.memory_ratio:.2f})",
        )
        for p in profiles
    ]
    saved = "tensors that autograd saves" if sample.device.type == "cpu" else "peak of a forward and backward pass"
    return Table(
        f"{profiles[0].name}: {conditions(sample, profiles[0].inference.threads)}",
        ("network", "parameters (IC)", "MACs/image (IC)", "inference, ms/image", "training, ms/image", "memory, MiB"),
        rows,
        [
            f"(×): against {profiles[0].name}, median over {profiles[0].inference.rounds} interleaved rounds in eager "
            "mode; training is forward and backward.",
            f"Memory for backward: {saved}, for the batch, without parameters.",
            *kernels_note(sample),
        ],
    )


def conditions(sample: Tensor, threads: int) -> str:
    """What is measured, on what, by what: the first line of a table."""
    n, c, h, w = sample.shape
    device = "CPU" if sample.device.type == "cpu" else torch.cuda.get_device_name(sample.device)
    return (
        f"batch {n}, {c}×{h}×{w}, {str(sample.dtype).removeprefix('torch.')}, {device}, "
        f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    )


def kernels_note(sample: Tensor) -> list[str]:
    """What the IC units compute with, on a CPU, and what would be faster."""
    if sample.device.type != "cpu":
        return []
    if native.loaded():
        return ["IC units compute with the C++ kernels of icnets build."]
    return ["IC units compute with PyTorch's own operators; the C++ kernels of `icnets build` are faster."]


def build(
    name: str,
    against: str | None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> dict[str, nn.Module]:
    """The basic network, its two conversions (every convolution; k×k only), and ``against`` if given."""
    from icnets.timm_models import NETWORKS, create_model

    name = NETWORKS.get(name, name)
    kwargs: dict[str, Any] = {"in_chans": in_chans, **(options or {})}
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    models = {
        name: create_model(name, ic=None, **kwargs),
        f"IC {name}, all convolutions": create_model(name, ic=ICConfig(), **kwargs),
        f"IC {name}, k×k only": create_model(name, ic=ICConfig(layers="kxk"), **kwargs),
    }
    if against is not None and against not in models:
        models[against] = create_model(against, ic=None, **kwargs)
    return {key: model.to(device) for key, model in models.items()}


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="icnets profile", description=__doc__, exit_on_error=False)
    parser.add_argument("name", type=str, help="any network that timm knows, such as resnet50")
    parser.add_argument("--against", type=str | None, default=None, help="a deeper network, such as resnet101")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a batch")
    parser.add_argument("--image-size", type=int | None, default=None, help="pixels; the network's own, or 224")
    parser.add_argument("--in-chans", type=int, default=3, help="channels of an image")
    parser.add_argument("--num-classes", type=int | None, default=None, help="outputs; the network's own")
    parser.add_argument("--options", type=dict[str, Any], default={}, help="further arguments for timm, as JSON")
    parser.add_argument("--threads", type=int | None, default=None, help="torch's threads; its own choice")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds of each measurement")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", action="store_true", help="layer by layer; NAME can be a checkpoint then")
    parser.add_argument("--images", type=Path | None, default=None, help="with --layers: folder of images to show it")
    parser.add_argument(
        "--json", type=str | None, default=None, help="write the numbers to this file; - for the terminal"
    )
    return parser


def _require_positive(args: Any) -> None:
    for name in ("batch_size", "image_size", "in_chans", "num_classes", "threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if args.device != "cpu" and not args.device.startswith("cuda"):
        raise ValueError(f"--device is {args.device!r}; it must be cpu or cuda")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device is {args.device!r}, but torch finds no CUDA device here; use --device cpu")
    if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
        raise ValueError(f"--json is {args.json}, but the folder {Path(args.json).parent} doesn't exist; make it first")


def _sample(models: Mapping[str, nn.Module], args: Any) -> Tensor:
    own = getattr(next(iter(models.values())), "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    size = own if args.image_size is None else args.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(args.batch_size, args.in_chans, size, size, generator=generator).to(args.device)


def require_input(name: str, model: nn.Module, sample: Tensor) -> None:
    """Raises ValueError where the network can't take such a batch."""
    try:
        with torch.no_grad():
            model.eval()(sample)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{name} can't take a batch of shape {tuple(sample.shape)}: {first_line(error)}; try another --image-size"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    from icnets.cli.parser import parse

    args = parse(_parser(), argv)
    _require_positive(args)
    if args.layers:
        from icnets.cli.profile_layers import run

        return run(args)
    if args.images is not None:
        raise ValueError(f"--images is {args.images}; it goes with --layers")
    options = {"num_classes": args.num_classes, "in_chans": args.in_chans, "options": args.options}
    models = build(args.name, args.against, device=args.device, **options)
    sample = _sample(models, args)
    for model in models.values():
        require_input(args.name, model, sample)
    profiles = profile(models, sample, rounds=args.rounds, threads=args.threads)
    if args.json == "-":
        print(json.dumps([asdict(p) for p in profiles], indent=1))
        return 0
    show(profile_table(profiles, sample))
    if args.json is not None:
        record = {"settings": vars(args.clone()), "torch": torch.__version__, "profiles": [asdict(p) for p in profiles]}
        record["settings"]["options"] = dict(args.options)
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nnumbers: {args.json}")
    return 0
