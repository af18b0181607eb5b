"""Classify image files, each read as in the network's evaluation, into CSV or JSON.

Those that can't be read have their reason in the output. Exit status: 0 all predicted, 1 some can't be read, 2 a
mistake in the arguments.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from icnets.cli.parser import Parser, require_folder_of
from icnets.data.protocol import EvaluationTransform
from icnets.deploy.export.engines import Artifact
from icnets.open_network import open_network
from icnets.predict.grad_cam import with_heat_maps
from icnets.predict.inference import Prediction, classes_of, evaluation_of, find_paths, predictions, shown
from icnets.predict.output import write_csv, write_json
from icnets.profile.machine import require_device
from icnets.support.files import atomic_write
from icnets.support.named_code import names_code
from icnets.support.text import counted, require_at_least

_SHOWN = 20  # unreadable files on the terminal; the output has all


def _parser() -> Parser:
    usage = "icnets predict MODEL PATHS... [OPTIONS]"
    parser = Parser(prog="icnets predict", usage=usage, description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="run, checkpoint, artifact (.onnx, .xml, .pt2), timm's name, or FILE.py:NAME")
    add("paths", metavar="PATHS", nargs="+", help="image files, and folders of them")
    add("--out", metavar="FILE", default="-", help="FILE.csv, FILE.json, or - for CSV on the terminal (default)")
    add("--top-k", metavar="N", type=int, default=5, help="classes of each image, at most (default: 5)")
    add("--batch-size", metavar="N", type=int, default=64, help="images at a time (default: 64)")
    add("--workers", metavar="N", type=int, help="processes that read images (default: 0, on a GPU one per core to 8)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--weights", metavar="FILE", type=Path, help="with a name: its weights (.safetensors, .pth, or a run)")
    add("--pretrained", action="store_true", help="with timm's name: its pretrained weights")
    add("--image-size", metavar="N", type=int, help="height and width the network sees (default: MODEL's)")
    add("--in-chans", metavar="N", type=int, help="1 (grey) or 3 (default: MODEL's)")
    add("--mean", metavar="X,X,X", type=numbers, help="of each channel, from 0 to 1 (default: MODEL's)")
    add("--std", metavar="X,X,X", type=numbers, help="likewise")
    add("--crop-pct", metavar="X", type=float, help="size of the centre crop by the shorter side (default: MODEL's)")
    add("--interpolation", choices=["bilinear", "bicubic", "nearest", "lanczos"], help="of resizing (default: MODEL's)")
    add("--grad-cam", metavar="DIR", type=Path, help="a picture of each image with Grad-CAM's heat map, in DIR")
    return parser


def numbers(text: str) -> tuple[float, ...]:
    """Reads numbers with commas in between; argparse names this function where they are none."""
    return tuple(float(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 if every image was predicted, and 1 if some couldn't be read.

    Raises:
        ValueError: a mistake in the arguments or files.
    """
    args = _parser().parse_intermixed_args(argv)
    _check(args)

    paths = find_paths(args.paths)
    if args.out is not None and os.path.abspath(args.out) in {os.path.abspath(path) for path in [args.model, *paths]}:
        raise ValueError(f"--out is {args.out}, which is read; give another name")
    require_device(args.device)
    untrained = f"{args.model} alone has random weights; give --weights FILE, or --pretrained (timm's names)"
    if names_code(args.model) and args.weights is None:
        raise ValueError(untrained)
    opened = open_network(args.model, pretrained=args.pretrained, weights=args.weights)
    network, names = opened.network, opened.notes.class_names
    if opened.file is None and not args.pretrained:
        raise ValueError(untrained)
    if isinstance(network, Artifact):
        if args.device != "cpu":
            raise ValueError(f"--device is {args.device!r}, but {args.model} is an artifact, which runs on the CPU")
        if args.grad_cam is not None:
            raise ValueError(f"--grad-cam needs gradients, which the artifact {args.model} lacks; give its checkpoint")
    network.requires_grad_(False).to(args.device)
    view, line = evaluation_of(args.model, opened, vars(args))
    classes = classes_of(args.model, network, view, args.device)
    if names is not None and len(names) != classes:
        print(f"{args.model} has {classes} classes and {len(names)} names; they are left out", file=sys.stderr)
        names = None
    args.top_k = min(args.top_k, classes)
    print(line, file=sys.stderr)
    errors = _predict(args, network, view, paths, names)
    _report(args, len(paths), errors)
    return int(bool(errors))


# Mistakes, before anything is computed.


def _check(args: argparse.Namespace) -> None:
    require_at_least(args, "--", top_k=1, batch_size=1, workers=0, image_size=1)
    args.out = None if args.out == "-" else Path(args.out)
    if args.out is not None and args.out.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--out is {args.out}; it must end in .csv or .json, or be - for the terminal")
    for name, path in (("--out", args.out), ("--grad-cam", args.grad_cam)):
        require_folder_of(path, name)
        if path is not None and path.exists() and path.is_dir() != (name == "--grad-cam"):
            raise ValueError(f"{name} is {path}, which is {'a folder' if path.is_dir() else 'a file'}; give another")


# The work.


def _predict(
    args: argparse.Namespace, network: nn.Module, view: EvaluationTransform, paths: Sequence[Path], names: Any
) -> list[Prediction]:
    """Predicts and writes everything; returns those that are errors."""
    workers = args.workers
    if workers is None:
        workers = 0 if args.device == "cpu" or len(paths) <= args.batch_size else min(8, os.cpu_count() or 1)
    options = {"top_k": args.top_k, "batch_size": args.batch_size, "device": args.device, "workers": workers}
    errors: list[Prediction] = []
    found = _counted(predictions(args.model, network, view, paths, **options), len(paths), errors)
    if args.grad_cam is not None:
        found = with_heat_maps(found, network, view, args.grad_cam, args.device)
    with ExitStack() as stack:
        file = sys.stdout
        if args.out is not None:
            temporary = stack.enter_context(atomic_write(args.out))
            file = stack.enter_context(open(temporary, "w", newline="", encoding="utf-8"))
        elif hasattr(file, "reconfigure"):  # whatever the terminal's encoding: names aren't lost to it
            file.reconfigure(encoding="utf-8")
        if args.out is None or args.out.suffix.lower() == ".csv":
            write_csv(file, found, args.top_k, names)
        else:
            write_json(file, found, names, {"model": args.model, "preprocessing": asdict(view)})
    return errors


def _counted(found: Iterator[Prediction], total: int, errors: list[Prediction]) -> Iterator[Prediction]:
    """Collects ``errors``, and counts on standard error if that is a terminal and not full of predictions."""
    for prediction in tqdm(found, total=total, unit=" images", disable=sys.stdout.isatty() or not sys.stderr.isatty()):
        if prediction.error is not None:
            errors.append(prediction)
        yield prediction


def _report(args: argparse.Namespace, total: int, errors: Sequence[Prediction]) -> None:
    images, lines = counted(total, "image"), list[str]()
    if errors:
        what = "can't be predicted" if any(error.image is not None for error in errors) else "can't be read"
        lines.append(f"{len(errors):,} of {images} {what}; they are in the output, with the reason:")
        lines += [f"  {shown(error.path)}: {shown(error.error or '')}" for error in errors[:_SHOWN]]
    if wrote := ", ".join(str(path) for path in (args.out, args.grad_cam) if path is not None):
        lines.append(f"{total - len(errors):,} of {images} predicted: {wrote}")
    for line in lines:
        print(line, file=sys.stderr)
