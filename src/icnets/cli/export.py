"""``icnets export MODEL --format F``: from a checkpoint, or a network's name, to an artefact that was proved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg, read_notes
from icnets.support.text import differing

__all__ = ["main"]

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".aoti.pt2"}


def _parser() -> argparse.ArgumentParser:
    from icnets.cli.parser import Parser

    parser = Parser(prog="icnets export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint of icnets (.safetensors), or a network's name, such as ic_resnet50")
    add("--format", choices=list(_SUFFIX), default="onnx", help="default: onnx")
    add("--out", metavar="PATH", type=Path, help="the artefact (default: MODEL's name, with the format's suffix)")
    add("--force", action="store_true", help="replace the artefact if it exists")
    add("--no-fuse", action="store_true", help="the network's own graph, not its deployed form")
    add("--int8", action="store_true", help="quantise, calibrated on images (onnx, openvino)")
    add("--image-size", metavar="N", type=int, help="height and width (default: the checkpoint's, or the network's)")
    add("--data.root", dest="root", metavar="DIR", type=Path, help="folder of images, as for icnets fit")
    add("--images", metavar="N", type=int, default=1000, help="most test images to measure int8 on (default: 1000)")
    add("--num-classes", metavar="N", type=int, help="outputs of a named network")
    add("--in-chans", metavar="N", type=int, help="image channels of a named network")
    add("--pretrained", action="store_true", help="a named network with timm's pretrained weights")
    add("--tolerance", metavar="X", type=float, default=1e-4, help="largest error, relative to the output's range")
    add("--max-loss", metavar="X", type=float, default=0.05, help="largest accuracy int8 may lose, as a part of 1")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, and raises ValueError with one line for what can't be done."""
    args = _parser().parse_args(argv)
    for name in ("image_size", "images", "num_classes", "in_chans"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    out = args.out or Path(f"{Path(args.model).name.removesuffix('.safetensors')}{_SUFFIX[args.format]}")
    if out.exists() and not args.force:
        raise ValueError(f"{out} exists already; give another --out, or --force")

    import torch

    from icnets.deploy.export.core import export, own_input_size
    from icnets.deploy.export.engines import require

    require(args.format, args.int8)
    network, notes = _network(args)
    own = own_input_size(network)
    side = args.image_size or notes.image_size or (own or (0,))[-1]
    if not side:
        raise ValueError(f"{args.model} doesn't say how large its images are; give --image-size N")
    example = torch.zeros(2, own[0] if own else notes.in_chans or 3, side, side)
    metadata, calibration, evaluation = _data(args, network, notes, example)
    report = export(
        network,
        out,
        args.format,
        example,
        fuse=not args.no_fuse,
        int8=args.int8,
        calibration_data=calibration,
        evaluation_data=evaluation,
        tolerance=args.tolerance,
        max_loss=args.max_loss,
        metadata=metadata,
    )
    print(report)
    return 0


def _network(args: argparse.Namespace) -> tuple[Any, ImageNotes]:
    """The network of MODEL, and what is known of its images."""
    from icnets import checkpoint, create_model

    named = {"num_classes": args.num_classes, "in_chans": args.in_chans}
    given = {key: value for key, value in named.items() if value is not None}
    if Path(args.model).suffix == ".safetensors" or Path(args.model).is_file():
        for key in (*given, *(["pretrained"] if args.pretrained else [])):
            raise ValueError(f"--{key.replace('_', '-')} goes with a network's name, but {args.model} is a checkpoint")
        return checkpoint.load(args.model), read_notes(checkpoint.read(args.model)[2])
    basic = {} if args.model.startswith("ic_") else {"ic": None}
    network = create_model(args.model, pretrained=args.pretrained, **basic, **given)
    if not args.pretrained:
        return network, ImageNotes()
    return network, replace(notes_of_cfg(getattr(network, "pretrained_cfg", {})), image_size=None, in_chans=None)


def _data(args: argparse.Namespace, network: Any, notes: ImageNotes, example: Any) -> tuple[dict[str, Any], Any, Any]:
    """What the artefact says of its images, and batches to calibrate and to measure on (None without images)."""
    names = notes.class_names
    metadata: dict[str, Any] = {**notes.transform, **({"class_names": names} if names else {})}
    if args.root is None and not _of_digits(names, notes):
        if args.int8:
            raise ValueError("--int8 is calibrated on images, and there are none; give --data.root DIR")
        return metadata, None, None

    from icnets.data.data_module import ImageData
    from icnets.deploy.export.core import CALIBRATION_IMAGES

    sizes: dict[str, Any] = {"in_chans": example.shape[1], "image_size": example.shape[2]}
    data = ImageData(args.root, **sizes, **notes.transform)
    if names is not None and names != data.class_names:
        ours, theirs = differing(data.class_names, names)
        raise ValueError(
            f"{args.root} has {ours}, {args.model} was trained on {theirs}; give images of the same classes"
        )
    outputs = _outputs(network, example)
    if outputs != data.num_classes:
        raise ValueError(f"{args.root} has {data.num_classes} classes, but {args.model} has {outputs} outputs")
    metadata |= {name: getattr(data, name) for name in ("mean", "std", "crop_pct", "interpolation", "class_names")}
    # Neither is augmented; and the artefact is measured on images that it wasn't calibrated on.
    return metadata, _spread(data.val_dataloader(), CALIBRATION_IMAGES), _spread(data.test_dataloader(), args.images)


def _of_digits(names: list[str] | None, notes: ImageNotes) -> bool:
    """Whether the checkpoint was trained on the embedded digits: their classes, and their very mean."""
    if names != [str(i) for i in range(10)] or notes.mean is None:
        return False
    from icnets.data.data_module import ImageData

    return notes.mean[0] == ImageData().mean[0]


def _outputs(network: Any, example: Any) -> int:
    import torch

    with torch.no_grad():
        return int(network.eval()(example).shape[-1])


def _spread(loader: Any, limit: int) -> Any:
    """At most ``limit`` images of ``loader``, evenly spaced: folders list one class after the other."""
    from torch.utils.data import DataLoader

    count = len(loader.dataset)
    indices = [i * count // min(limit, count) for i in range(min(limit, count))]
    return DataLoader(loader.dataset, batch_size=64, sampler=indices, collate_fn=loader.collate_fn)
