"""Read a basic network's checkpoint, convert the network, and write an IC network's checkpoint."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icnets.cli.parser import Parser, require_folder_of, require_new
from icnets.convert.config import CHOICES
from icnets.support.text import one_line, require_at_least


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    usage = "icnets convert IN OUT [--model NAME] [OPTIONS]"
    parser = Parser(prog="icnets convert", usage=usage, description=__doc__)
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="file of icnets.save, or a state dict (.pth, .safetensors)")
    add("target", metavar="OUT", type=Path, help="the new checkpoint, .safetensors")
    add("--model", metavar="NAME", help="timm's name, or FILE.py:NAME, where IN doesn't say it")
    add("--num-classes", metavar="N", type=int, help="classes of NAME, where they aren't IN's")
    add("--in-chans", metavar="N", type=int, help="image channels of NAME, likewise")
    add("--layers", choices=CHOICES["layers"], default="all", help="convolutions to convert (default: all)")
    add("--linear", action="store_true", help="convert fully connected layers as well")
    warm = "gain: exactly the same function (default); none: the paper's unit, w' from 0"
    add("--warm-start", choices=["none", "gain"], default="gain", help=warm)
    add("--max-slowdown", metavar="X", type=float, help="convert what leaves the network within X times its time")
    add("--engine", choices=CHOICES["engine"], default="eager", help="where that is measured (default: eager)")
    add("--batch-size", metavar="N", type=int, help="images in the batch that is measured (default: 1)")
    add("--image-size", metavar="N", type=int, help="their pixels (default: the network's own)")
    add("--no-inner-bias", action="store_false", dest="inner_bias", help="leave out b1, the bias inside the rectifier")
    add("--force", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    for name in ("batch_size", "image_size"):
        if args.max_slowdown is None and getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of the batch that --max-slowdown measures; give that too")
    require_at_least(args, "--", batch_size=1, image_size=1)
    if not args.source.exists():
        raise ValueError(f"there is no checkpoint {args.source}; check the path")
    if args.target.suffix != ".safetensors":
        raise ValueError(f"OUT is {args.target}; it must end in .safetensors")
    require_folder_of(args.target, "OUT")
    require_new(args.target, "OUT", args.force)

    from icnets import ICConfig, checkpoint, convert_, ic_parameters

    names = ("layers", "linear", "warm_start", "inner_bias", "max_slowdown", "engine")
    config = ICConfig(**{name: getattr(args, name) for name in names})
    network, strings, origin = _basic(args)
    if next(iter(ic_parameters(network)), None) is not None:
        raise ValueError(f"{args.source} holds an IC network already")
    example = _example(args, network) if config.measures else None
    report = convert_(network, config, optimizers=(), example_input=example)
    checkpoint.save(network, args.target, metadata=strings)
    print(*([f"read {origin} of {args.source}"] if origin else []), f"{report}\nwrote {args.target}", sep="\n")
    return 0


def _example(args: argparse.Namespace, network: Any) -> Any:
    """The batch whose time is measured."""
    import torch

    from icnets.deploy.fuse import own_input_size

    own = own_input_size(network)
    size = args.image_size or (own[-1] if own else None)
    if size is None:
        raise ValueError(f"{args.model or args.source} doesn't say how large its images are; give --image-size N")
    channels = own[0] if own else args.in_chans or 3
    return torch.randn(args.batch_size or 1, channels, size, size, generator=torch.Generator().manual_seed(0))


def _basic(args: argparse.Namespace) -> tuple[Any, Mapping[str, str], str]:
    """The network of ``args.source``, what is noted beside it, and where in the file its weights stand."""
    from icnets.checkpoint.weights_files import noted, written_by_icnets
    from icnets.open_network import named_with_weights, open_network

    sizes: dict[str, Any] = {"num_classes": args.num_classes, "in_chans": args.in_chans}
    if args.model is None:
        try:
            network, _, strings, _ = open_network(args.source, **sizes)
        except ValueError as error:
            if args.source.is_dir() or written_by_icnets(args.source):
                raise
            what = f"{args.source} doesn't say which network it is of; give --model NAME"
            raise ValueError(f"{what} ({one_line(error)})") from error
        return network, strings, ""
    network, _, origin = named_with_weights(args.model, args.source, sizes)
    return network, noted(args.source), origin
