"""``icnets convert IN OUT``: a basic network's checkpoint in, an IC network's checkpoint out."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icnets.cli.parser import Parser
from icnets.support.text import one_line


def _parser() -> Parser:
    parser = Parser(
        prog="icnets convert",
        usage="icnets convert IN OUT [--model NAME] [OPTIONS]",
        description="Read a basic network's checkpoint, convert the network, and write an IC network's checkpoint.",
    )
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="file of icnets.save, or a state dict (.pth, .safetensors)")
    add("target", metavar="OUT", type=Path, help="the new checkpoint, .safetensors")
    add("--model", metavar="NAME", help="timm's name of the network, where IN doesn't say it")
    add("--num-classes", metavar="N", type=int, help="classes of the network (default: as in IN)")
    add("--in-chans", metavar="N", type=int, help="image channels of the network (default: as in IN)")
    add("--layers", choices=["all", "kxk", "no-stem"], default="all", help="convolutions to convert (default: all)")
    add("--linear", action="store_true", help="convert fully connected layers as well")
    warm = "gain: exactly the same function (default); none: the paper's unit, w' from 0"
    add("--warm-start", choices=["none", "gain"], default="gain", help=warm)
    add("--no-inner-bias", action="store_true", help="leave out b1, the bias inside the rectifier")
    add("--force", action="store_true", help="replace OUT if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    if named := {arg.partition("=")[0] for arg in argv or ()} & {"--out", "--output", "--weights", "--init-from"}:
        raise ValueError(f"unknown option {min(named)}: both files stand without one, icnets convert IN OUT")
    args = _parser().parse_args(argv)
    _check(args.source, args.target, args.force)

    from icnets import ICConfig, checkpoint, convert_, ic_parameters

    config = ICConfig(
        layers=args.layers, linear=args.linear, warm_start=args.warm_start, inner_bias=not args.no_inner_bias
    )
    network, strings, origin = _basic(args)
    if next(iter(ic_parameters(network)), None) is not None:
        raise ValueError(f"{args.source} holds an IC network already")
    report = convert_(network, config, optimizers=())
    checkpoint.save(network, args.target, metadata=strings)
    print(*([f"read {origin} of {args.source}"] if origin else []), f"{report}\nwrote {args.target}", sep="\n")
    return 0


def _check(source: Path, target: Path, force: bool) -> None:
    if source.is_dir():
        raise ValueError(f"{source} is a folder; give the file of weights in it")
    if not source.is_file():
        raise ValueError(f"there is no checkpoint {source}; check the path")
    if target.suffix != ".safetensors":
        raise ValueError(f"OUT is {target}; it must end in .safetensors")
    if not target.parent.is_dir():
        raise ValueError(f"the folder {target.parent} of OUT doesn't exist; create it first")
    if target.exists() and not force:
        raise ValueError(f"{target} exists already; give another OUT, or --force")


def _basic(args: argparse.Namespace) -> tuple[Any, Mapping[str, str], str]:
    """The network of ``args.source``, what is noted beside it, and where in the file its weights stand."""
    from icnets.checkpoint.foreign import read_weights
    from icnets.open_network import load_weights, noted, open_network, written_by_icnets
    from icnets.timm_models import create_model

    if args.model is None:
        if not written_by_icnets(args.source) and args.source.suffix != ".ckpt":
            raise ValueError(f"{args.source} doesn't say which network it is of; give --model NAME")
        try:
            network, _, strings, _ = open_network(args.source)
        except ValueError as error:
            if args.source.suffix != ".ckpt":
                raise
            what = f"{args.source} doesn't say which network it is of; give --model NAME"
            raise ValueError(f"{what} ({one_line(error)})") from error
        return network, strings, ""
    network = create_model(args.model, ic=None)
    sizes: dict[str, Any] = _sizes(network, read_weights(args.source, network.state_dict()).state)
    sizes |= {name: value for name in ("num_classes", "in_chans") if (value := getattr(args, name)) is not None}
    network = create_model(args.model, ic=None, **sizes)
    origin = load_weights(network, args.source)
    return network.eval(), noted(args.source), origin


def _sizes(network: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and image channels, read off the weights where timm says which layers are the first and the last."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    found: dict[str, Any] = {}
    for size, entry, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        weight = state.get(f"{cfg.get(entry)}.weight")
        if weight is not None and weight.ndim > axis:
            found[size] = int(weight.shape[axis])
    return found
