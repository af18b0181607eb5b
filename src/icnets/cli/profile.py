"""What a network costs, as basic and as IC network."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from icnets.cli.parser import Parser
from icnets.convert.config import ICConfig
from icnets.convert.surgery import convert_
from icnets.deploy.export.engines import Artifact
from icnets.open_network import open_network
from icnets.profile.machine import require_device
from icnets.profile.measure import profile, profile_table
from icnets.support.text import first_line, require_at_least
from icnets.timm_models import NETWORKS
from icnets.unit.layers import ic_parameters


def _networks(args: Any) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """The basic network, its two conversions (every convolution; k×k only); the shape of a batch."""
    name = NETWORKS.get(args.name, args.name)
    options = {"num_classes": args.num_classes, "in_chans": args.in_chans}
    opened = open_network(name, weights=args.weights, **options)
    basic, (channels, side) = opened.network, opened.image_shape
    if isinstance(basic, Artifact) or next(iter(ic_parameters(basic)), None) is not None:
        kind = "an artifact" if isinstance(basic, Artifact) else "an IC network"
        raise ValueError(f"{args.name} is {kind}; give the basic network, which is compared with its conversions")
    networks = {name: basic}
    for text, config in (("all convolutions", ICConfig(layers="all")), ("k×k only", ICConfig(layers="kxk"))):
        networks[f"IC {name}, {text}"] = converted = copy.deepcopy(basic)
        convert_(converted, config, optimizers=())
    size = args.image_size or side or 224
    return {key: network.to(args.device) for key, network in networks.items()}, (args.batch_size, channels, size, size)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    parser = Parser(prog="icnets profile", description=__doc__)
    add = parser.add_argument
    add("name", metavar="NAME", help="timm's name, such as resnet50, my_cnn.py:MyCNN, or a checkpoint")
    add("--weights", metavar="FILE", help="weights of a named network")
    add("--batch-size", metavar="N", type=int, default=8, help="images in a batch (default: 8)")
    add("--image-size", metavar="N", type=int, help="pixels (default: the network's own, or 224)")
    add("--in-chans", metavar="N", type=int, help="channels of an image (default: the network's own, or 3)")
    add("--num-classes", metavar="N", type=int, help="outputs (default: the network's own)")
    add("--rounds", metavar="N", type=int, default=11, help="interleaved rounds of each measurement (default: 11)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    require_at_least(args, "--", **dict.fromkeys(("batch_size", "image_size", "in_chans", "num_classes", "rounds"), 1))
    require_device(args.device)
    networks, shape = _networks(args)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(args.device)
    try:
        profiles = profile(networks, sample, rounds=args.rounds)
    except (RuntimeError, AssertionError, ValueError) as error:
        what = f"{args.name} can't take a batch of shape {shape}: {first_line(error)}"
        raise ValueError(f"{what}; try another --image-size or --batch-size") from error
    print(profile_table(profiles, sample).plain())
    return 0
