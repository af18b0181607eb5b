"""``icnets export MODEL --format F``: from a checkpoint, or a network's name, to an artifact that was proved."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from icnets.cli.parser import Parser, require_new
from icnets.data.data_module import ImageData
from icnets.deploy.export.core import CALIBRATION_IMAGES, export
from icnets.deploy.export.engines import Artifact, require
from icnets.open_network import OpenedNetwork, open_network
from icnets.support.text import differing, require_at_least

_MEASURED = 1000  # test images that int8 is measured on, at most
_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}


def _parser() -> Parser:
    parser = Parser(prog="icnets export", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="run or checkpoint, or a name, such as ic_resnet50 or my_cnn.py:MyCNN")
    add("--weights", metavar="FILE", type=Path, help="weights of a named network (.safetensors, .pth, or a run)")
    add("--format", choices=list(_SUFFIX), default="onnx", help="default: onnx")
    add("--out", metavar="PATH", type=Path, help="the artifact (default: MODEL's name, with the format's suffix)")
    add("--force", action="store_true", help="replace the artifact if it exists")
    add("--no-fuse", action="store_true", help="the network's own graph, not its deployed form")
    add("--int8", action="store_true", help="quantise, calibrated on images of --data.root (onnx)")
    add("--image-size", metavar="N", type=int, help="height and width (default: the checkpoint's, or the network's)")
    add("--data.root", dest="root", metavar="DIR", type=Path, help="folder of images, as for icnets fit")
    add("--num-classes", metavar="N", type=int, help="outputs of a named network")
    add("--in-chans", metavar="N", type=int, help="image channels of a named network")
    add("--pretrained", action="store_true", help="a named network with timm's pretrained weights")
    add("--tolerance", metavar="X", type=float, default=1e-4, help="largest error, relative to the output's range")
    add("--max-loss", metavar="X", type=float, default=0.05, help="largest accuracy int8 may lose, as a part of 1")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    args = _parser().parse_args(argv)
    require_at_least(args, "--", image_size=1, num_classes=1, in_chans=1)
    stem = Path(args.model).name.removesuffix(".safetensors").rpartition(":")[2]
    out = args.out or Path(f"{stem}{_SUFFIX[args.format]}")
    require_new(out, "--out", args.force)

    require(args.format, args.int8)
    sizes = {"num_classes": args.num_classes, "in_chans": args.in_chans}
    opened = open_network(args.model, pretrained=args.pretrained, weights=args.weights, **sizes)
    if isinstance(opened.network, Artifact):
        raise ValueError(f"{args.model} is an artifact already; give the checkpoint that it was made of")
    channels, side = opened.image_shape
    side = args.image_size or side
    if not side:
        raise ValueError(f"{args.model} doesn't say how large its images are; give --image-size N")
    example = torch.zeros(2, channels, side, side)
    options = {name: getattr(args, name) for name in ("int8", "tolerance", "max_loss")}
    options |= {"fuse": not args.no_fuse, **_data(args, opened, example)}
    print(export(opened.network, out, args.format, example, **options))
    return 0


def _data(args: argparse.Namespace, opened: OpenedNetwork, example: Any) -> dict[str, Any]:
    """What the artifact says of its images, and batches to calibrate and to measure on where there are images."""
    notes = opened.notes
    names = notes.class_names if opened.file is not None else None  # ImageNet's may be called otherwise in the images
    metadata: dict[str, Any] = {**notes.transform, **({"class_names": names} if names else {})}
    if args.root is None:
        if args.int8:
            raise ValueError("--int8 is calibrated on images, and there are none; give --data.root DIR")
        return {"metadata": metadata}

    sizes: dict[str, Any] = {"in_chans": example.shape[1], "image_size": example.shape[2]}
    data = ImageData(args.root, **sizes, **notes.transform)
    if names is not None and names != data.class_names:
        ours, theirs = differing(data.class_names, names)
        what = f"{args.root} has {ours}, {args.model} was trained on {theirs}"
        raise ValueError(f"{what}; give images of the same classes")
    with torch.no_grad():
        outputs = opened.network(example).shape[-1]
    if outputs != data.num_classes:
        raise ValueError(f"{args.root} has {data.num_classes} classes, but {args.model} has {outputs} outputs")
    metadata |= {name: getattr(data, name) for name in ("mean", "std", "crop_pct", "interpolation", "class_names")}
    # Neither is augmented; and the artifact is measured on images that it wasn't calibrated on.
    calibration, evaluation = (data.val_dataloader(), CALIBRATION_IMAGES), (data.test_dataloader(), _MEASURED)
    batches = {"calibration_data": _spread(*calibration), "evaluation_data": _spread(*evaluation)}
    return {"metadata": metadata, **batches}


def _spread(loader: Any, limit: int) -> Any:
    """At most ``limit`` images of ``loader``, evenly spaced: folders list one class after the other."""
    step = -(-len(loader.dataset) // limit)
    indices = range(0, len(loader.dataset), step)
    return DataLoader(loader.dataset, batch_size=64, sampler=indices, collate_fn=loader.collate_fn)
