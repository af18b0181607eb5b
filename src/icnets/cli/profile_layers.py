"""``icnets profile NAME --layers``: from the arguments to a network, its images, and the table of its layers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.checkpoint.image_notes import ImageNotes
from icnets.cli.profile import conditions, kernels_note, require_input
from icnets.convert.surgery import ICConfig
from icnets.profile.layer_profile import layer_table, profile_layers
from icnets.profile.measure import use_threads
from icnets.support.files import atomic_write
from icnets.support.tables import show
from icnets.support.text import first_line

__all__ = ["run"]


def run(args: Any) -> int:
    """Measures and prints; returns 0. Raises ValueError for a mistake in the arguments or files."""
    network, notes = _network(args)
    sample, images = _sample(args, network.eval(), notes)
    network, sample = network.to(args.device), sample.to(args.device)
    require_input(args.name, network, sample)
    costs = profile_layers(network, sample, rounds=args.rounds, threads=args.threads)
    if args.json == "-":
        print(json.dumps([asdict(cost) for cost in costs], indent=1))
        return 0
    with use_threads(args.threads) as threads:
        title = f"{args.name}, layer by layer: {conditions(sample, threads)}"
    show(layer_table(costs, title, images, args.rounds, kernels_note(sample)))
    if args.json is not None:
        settings = {**vars(args.clone()), "options": dict(args.options), "images": args.images and str(args.images)}
        record = {"settings": settings, "torch": torch.__version__, "shown": images}
        with atomic_write(Path(args.json)) as temporary:
            text = json.dumps({**record, "layers": [asdict(cost) for cost in costs]}, indent=1)
            temporary.write_text(f"{text}\n", encoding="utf-8")
        print(f"\nnumbers: {args.json}")
    return 0


def _network(args: Any) -> tuple[nn.Module, ImageNotes]:
    """The network of a checkpoint; or a named one, every convolution converted, with random weights."""
    if args.against is not None:
        raise ValueError(f"--against is {args.against}, but --layers is of one network; leave it out")
    from icnets.open_network import open_network

    in_chans = None if args.in_chans == 3 else args.in_chans
    sizes = {"num_classes": args.num_classes, "in_chans": in_chans}
    opened = open_network(args.name, ic=ICConfig(), **sizes, **args.options)
    return opened.network, opened.notes


def _sample(args: Any, network: nn.Module, notes: ImageNotes) -> tuple[Tensor, str]:
    """A batch, and what it is in words: images of ``args.images``, evenly spaced, or normal noise."""
    from icnets.predict.inference import evaluation_of

    view, _ = evaluation_of(args.name, network, notes, {"image_size": args.image_size})
    if args.images is None:
        shape = (args.batch_size, view.in_chans, view.image_size, view.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)), "random input (normal noise)"
    from icnets.data.folders import find_images

    paths = find_images(args.images, classes=False).paths
    count = min(args.batch_size, len(paths))
    files = view.files([paths[i * len(paths) // count] for i in range(count)])
    images = []
    for index in range(count):
        try:
            images.append(files.evaluated(index))
        except Exception as error:  # decoders raise whatever they stumble over
            raise ValueError(
                f"can't read the image {files.name(index)}: {first_line(error)}; icnets data check lists them all"
            ) from error
    return torch.stack(images), f"{count} of the {len(paths):,} images in {args.images}"
