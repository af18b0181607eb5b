"""``icnets profile NAME``: what a network costs as basic and as IC network, as a whole or layer by layer."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets.checkpoint.image_notes import ImageNotes
from icnets.cli.configuration import parse
from icnets.convert.surgery import ICConfig
from icnets.profile.layer_profile import layer_table, profile_layers
from icnets.profile.measure import use_threads
from icnets.profile.network_profile import conditions, kernels_note, profile, profile_table
from icnets.support.files import atomic_write
from icnets.support.tables import show
from icnets.support.text import first_line


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="icnets profile", description=__doc__, exit_on_error=False)
    parser.add_argument("name", type=str, help="any network that timm knows, such as resnet50")
    for name, kind, default, text in (
        ("against", str | None, None, "a deeper network, such as resnet101"),
        ("batch-size", int, 8, "images in a batch"),
        ("image-size", int | None, None, "pixels; the network's own, or 224"),
        ("in-chans", int, 3, "channels of an image"),
        ("num-classes", int | None, None, "outputs; the network's own"),
        ("options", dict[str, Any], {}, "further arguments for timm, as JSON"),
        ("threads", int | None, None, "torch's threads; its own choice"),
        ("rounds", int, 11, "interleaved rounds of each measurement"),
        ("device", str, "cpu", "cpu or cuda"),
        ("images", Path | None, None, "with --layers: folder of images to show it"),
        ("json", str | None, None, "write the numbers to this file; - for the terminal"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--layers", action="store_true", help="layer by layer; NAME can be a checkpoint then")
    return parser


def _check(args: Any) -> None:
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
    if args.images is not None and not args.layers:
        raise ValueError(f"--images is {args.images}; it goes with --layers")
    if args.against is not None and args.layers:
        raise ValueError(f"--against is {args.against}, but --layers is of one network; leave it out")


def _networks(args: Any) -> tuple[dict[str, nn.Module], ImageNotes]:
    """The basic network, its two conversions (every convolution; k×k only), and ``--against``, by name.

    With ``--layers``, the network of a checkpoint alone, or a named one with every convolution converted.
    """
    from icnets.open_network import network_file, open_network
    from icnets.timm_models import NETWORKS, create_model

    if (path := network_file(args.name)) is not None:
        if not args.layers:
            raise ValueError(f"{args.name} is no network's name; of the network in a file there is --layers alone")
        if args.num_classes is not None or args.options:
            raise ValueError(f"--num-classes and --options go with a network's name, but {args.name} is a checkpoint")
        opened = open_network(path)
        return {args.name: opened.network}, opened.notes
    sizes = {} if args.num_classes is None else {"num_classes": args.num_classes}
    options = {"in_chans": args.in_chans, **sizes, **args.options}
    name, ic = NETWORKS.get(args.name, args.name), ICConfig()
    made: dict[str, tuple[str, ICConfig | None]] = {
        name: (name, None),
        f"IC {name}, all convolutions": (name, ic),
        f"IC {name}, k×k only": (name, ICConfig(layers="kxk")),
    }
    if args.against is not None:
        made.setdefault(args.against, (args.against, None))
    if args.layers:
        made = {args.name: (args.name, ic)}
    networks = {key: create_model(model, ic=config, **options) for key, (model, config) in made.items()}
    return networks, ImageNotes(in_chans=args.in_chans)


def _sample(args: Any, network: nn.Module, notes: ImageNotes) -> tuple[Tensor, str]:
    """A batch, and what it is in words: images of ``--images``, evenly spaced, or normal noise."""
    channels, size = args.in_chans, args.image_size
    if args.layers:
        from icnets.predict.inference import evaluation_of

        view, _ = evaluation_of(args.name, network, notes, {"image_size": size})
        channels, size = view.in_chans, view.image_size
    if args.images is None:
        size = size or getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
        noise = torch.randn(args.batch_size, channels, size, size, generator=torch.Generator().manual_seed(0))
        return noise, "random input (normal noise)"
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    args = parse(_parser(), argv)
    _check(args)
    networks, notes = _networks(args)
    sample, images = _sample(args, next(iter(networks.values())), notes)
    networks = {name: network.to(args.device) for name, network in networks.items()}
    sample = sample.to(args.device)
    for network in networks.values():
        try:
            with torch.no_grad():
                network.eval()(sample)
        except (RuntimeError, AssertionError) as error:
            shape = tuple(sample.shape)
            raise ValueError(
                f"{args.name} can't take a batch of shape {shape}: {first_line(error)}; try another --image-size"
            ) from error
    options = {"rounds": args.rounds, "threads": args.threads}
    if args.layers:
        costs = profile_layers(networks[args.name], sample, **options)
        with use_threads(args.threads) as threads:
            title = f"{args.name}, layer by layer: {conditions(sample, threads)}"
        table = layer_table(costs, title, images, args.rounds, kernels_note(sample))
        record, key = [asdict(cost) for cost in costs], "layers"
    else:
        profiles = profile(networks, sample, **options)
        table = profile_table(profiles, sample)
        record, key = [asdict(found) for found in profiles], "profiles"
    if args.json == "-":
        print(json.dumps(record, indent=1))
        return 0
    show(table)
    if args.json is not None:
        settings = {**vars(args.clone()), "options": dict(args.options), "images": args.images and str(args.images)}
        whole = {"settings": settings, "torch": torch.__version__, "shown": images, key: record}
        with atomic_write(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(f"\nnumbers: {args.json}")
    return 0
