"""``icnets predict MODEL PATHS``: the classes of image files, as CSV or JSON, and what can't be read beside them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icnets.data.data_module import ImageData
    from icnets.predict.inference import Batch, Prediction
    from icnets.predict.models import Model

__all__ = ["main", "parser"]

_SHOWN = 20  # unreadable files on the terminal; the output has all
_TOP_K = 5


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    from icnets.cli.parser import Parser

    parser = Parser(prog="icnets predict", usage="icnets predict MODEL PATHS... [OPTIONS]", allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint (.safetensors, .ckpt), artefact (.onnx, .xml, .pt2), or timm's name")
    add("paths", metavar="PATHS", nargs="+", help="image files, folders, patterns, or lists of paths (.txt, .csv)")
    add("--out", metavar="FILE", default="-", help="FILE.csv, FILE.json, or - for the terminal (default)")
    add("--format", choices=["csv", "json"], help="default: by the name of --out, or csv")
    add("--top-k", metavar="N", type=int, help=f"classes of each image (default: {_TOP_K}, or all if there are fewer)")
    add("--class-names", metavar="FILE", type=Path, help="names, one a line, or a list in .json (default: MODEL's)")
    add("--batch-size", metavar="N", type=int, default=64, help="images at a time (default: 64)")
    add("--workers", metavar="N", type=int, help="processes that read images (default: 0, on a GPU one per core to 8)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--pretrained", action="store_true", help="with timm's name: its pretrained weights")
    add("--image-size", metavar="N", type=int, help="height and width the network sees (default: MODEL's)")
    add("--in-chans", metavar="N", type=int, help="1 (grey) or 3 (default: MODEL's)")
    add("--mean", metavar="X,X,X", type=_numbers, help="of each channel, from 0 to 1 (default: MODEL's)")
    add("--std", metavar="X,X,X", type=_numbers, help="likewise")
    add("--crop-pct", metavar="X", type=float, help="size of the centre crop by the shorter side (default: MODEL's)")
    add("--interpolation", choices=["bilinear", "bicubic", "nearest", "lanczos"], help="of resizing (default: MODEL's)")
    add("--contact-sheet", metavar="FILE.png", type=Path, help="the first 100 images with their classes on one sheet")
    add("--grad-cam", metavar="DIR", type=Path, help="a picture of each image with Grad-CAM's heat map, in DIR")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas in between") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 if every image was predicted, and 1 if some couldn't be read.

    Raises:
        ValueError: a mistake in the arguments or files.
    """
    args = parser().parse_intermixed_args(argv)
    _check(args)

    from icnets.predict.models import classes_of, open_model
    from icnets.predict.paths import find_paths
    from icnets.predict.preprocessing import describe, image_data

    paths = find_paths(args.paths)
    _keep_inputs(args, paths)
    model = open_model(args.model, pretrained=args.pretrained, device=args.device)
    given = {key: getattr(args, key) for key in ("image_size", "in_chans", "mean", "std", "crop_pct", "interpolation")}
    data, assumed = image_data(args.model, model.notes, given, model.network, fixed=model.fixed is not None)
    classes = classes_of(model, data.in_chans, data.image_size)
    names = _names(args, model, classes)
    if args.top_k is not None and args.top_k > classes:
        raise ValueError(f"--top-k is {args.top_k}, but {args.model} has {classes} classes")
    args.top_k = args.top_k or min(_TOP_K, classes)
    print(describe(data, assumed, args.model), file=sys.stderr)
    errors = _predict(args, model, data, paths, names)
    _report(args, len(paths), errors)
    return int(bool(errors))


# Mistakes, before anything is computed.


def _check(args: argparse.Namespace) -> None:
    for name, least in (("top_k", 1), ("batch_size", 1), ("workers", 0), ("image_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    out = None if args.out == "-" else Path(args.out)
    if out is not None and out.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--out is {args.out}; it must end in .csv or .json, or be - for the terminal")
    if out is not None and args.format not in (None, out.suffix.lower()[1:]):
        raise ValueError(f"--out is {args.out} and --format {args.format}; leave --format out, or name the file by it")
    args.format = args.format or ("csv" if out is None else out.suffix.lower()[1:])
    args.out = out
    if args.contact_sheet is not None and args.contact_sheet.suffix.lower() != ".png":
        raise ValueError(f"--contact-sheet is {args.contact_sheet}; it must end in .png")
    for option, path in (("--out", out), ("--contact-sheet", args.contact_sheet), ("--grad-cam", args.grad_cam)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} of {option} doesn't exist; create it first")
        if path.exists() and path.is_dir() != (option == "--grad-cam"):
            raise ValueError(f"{option} is {path}, which is {'a folder' if path.is_dir() else 'a file'}; give another")


def _keep_inputs(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """ValueError if an output would replace an image, a list or the model."""
    inputs = {os.path.abspath(path) for path in [args.model, *args.paths, *paths]}
    for option, path in (("--out", args.out), ("--contact-sheet", args.contact_sheet)):
        if path is not None and os.path.abspath(path) in inputs:
            raise ValueError(f"{option} is {path}, which is read; give another name")


def _names(args: argparse.Namespace, model: Model, classes: int) -> list[str] | None:
    """The names of the classes; None if nobody knows them."""
    if args.class_names is None:
        names = model.notes.class_names
        if names is not None and len(names) != classes:
            print(f"{args.model} has {classes} classes and {len(names)} names; they are left out", file=sys.stderr)
            return None
        return names
    file = args.class_names
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if file.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"can't read --class-names {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--class-names {file} is no text in UTF-8, or no JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"--class-names {file} must hold a list of names")
    if len(names) != classes:
        raise ValueError(f"--class-names {file} has {len(names)} names, but {args.model} has {classes} classes")
    return names


# The work.


def _predict(
    args: argparse.Namespace, model: Model, data: ImageData, paths: Sequence[Path], names: list[str] | None
) -> list[Prediction]:
    """Predicts and writes everything; returns those that are errors."""
    from icnets.predict.inference import predictions
    from icnets.predict.output import writing

    views = [view for view in (_contact_sheet(args, data, names), _grad_cam(args, model, data)) if view is not None]
    keys = ("image_size", "in_chans", "mean", "std", "crop_pct", "interpolation")
    about = {"model": args.model, "preprocessing": {key: getattr(data, key) for key in keys}}
    options = {"top_k": args.top_k, "batch_size": args.batch_size, "workers": _workers(args, len(paths))}
    errors: list[Prediction] = []
    with (
        writing(args.out, args.format, top_k=args.top_k, names=names, about=about) as writer,
        _progress(len(paths), hidden=args.out is None and sys.stdout.isatty()) as advance,
    ):
        for batch in predictions(model, data, paths, **options):
            for prediction in batch.predictions:
                writer.write(prediction)
            errors += [prediction for prediction in batch.predictions if prediction.error is not None]
            for show, _ in views:
                show(batch)
            advance(len(batch.predictions), len(errors))
        for _, end in views:
            end()
    return errors


def _workers(args: argparse.Namespace, images: int) -> int:
    if args.workers is not None:
        return int(args.workers)
    if args.device == "cpu" or images <= args.batch_size:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


_View = tuple[Callable[["Batch"], None], Callable[[], None]]  # of each batch, and at the end


def _contact_sheet(args: argparse.Namespace, data: ImageData, names: list[str] | None) -> _View | None:
    if args.contact_sheet is None:
        return None
    from icnets.predict.contact_sheet import ContactSheet, picture
    from icnets.predict.paths import shown

    sheet = ContactSheet()

    def show(batch: Batch) -> None:
        images = iter(batch.images)
        for prediction in batch.predictions if not sheet.full else ():
            path = shown(prediction.path)
            if prediction.error is not None:
                sheet.add(None, [path, "unreadable"])
                continue
            best = prediction.classes[0]
            label = f"class {best}" if names is None else names[best]
            lines = [path, f"{label} {prediction.probabilities[0]:.0%}"]
            sheet.add(picture(next(images), data.mean, data.std), lines)

    return show, lambda: sheet.save(args.contact_sheet)


def _grad_cam(args: argparse.Namespace, model: Model, data: ImageData) -> _View | None:
    if args.grad_cam is None:
        return None
    if model.network is None:
        raise ValueError(
            f"--grad-cam needs gradients, which {args.model}, exported as {model.fixed}, has not; give its checkpoint"
        )
    import torch

    from icnets.predict.contact_sheet import as_image, heated, save_png, unnormalized
    from icnets.predict.grad_cam import GradCam

    shape = (1, data.in_chans, data.image_size, data.image_size)
    cam = GradCam(model.network, torch.zeros(shape, device=args.device))
    args.grad_cam.mkdir(exist_ok=True)
    number = 0

    def show(batch: Batch) -> None:
        nonlocal number
        good = [prediction for prediction in batch.predictions if prediction.error is None]
        classes = torch.tensor([prediction.classes[0] for prediction in good])
        heats = iter(cam(batch.images.to(args.device), classes)) if good else iter(())
        images = iter(batch.images)
        for prediction in batch.predictions:
            number += 1
            if prediction.error is None:
                stem = re.sub(r"[^A-Za-z0-9._-]", "_", prediction.path.stem)[:80]
                pixels = unnormalized(next(images), data.mean, data.std)
                save_png(as_image(heated(pixels, next(heats))), args.grad_cam / f"{number:06d}-{stem}.png")

    return show, lambda: None


@contextmanager
def _progress(total: int, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal; takes how many more are done, and how many errors there are."""
    if hidden or not sys.stderr.isatty():  # hidden: the terminal is full of predictions
        yield lambda done, errors: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)

        def advance(done: int, errors: int) -> None:
            bar.update(task, advance=done, description=f"images, {errors:,} unreadable" if errors else "images")

        yield advance


def _report(args: argparse.Namespace, total: int, errors: Sequence[Prediction]) -> None:
    from icnets.predict.paths import shown

    if errors:
        what = "have no prediction" if any(error.read for error in errors) else "can't be read"
        lines = [f"{len(errors):,} of {total:,} images {what}; they are in the output, with the reason:"]
        lines += [f"  {shown(error.path)}: {shown(error.error or '')}" for error in errors[:_SHOWN]]
        if len(errors) > _SHOWN:
            lines.append(f"  and {len(errors) - _SHOWN:,} more")
        print("\n".join(lines), file=sys.stderr)
    outputs: dict[str, Any] = {"predictions": args.out, "contact sheet": args.contact_sheet, "Grad-CAM": args.grad_cam}
    wrote = "; ".join(f"{what}: {path}" for what, path in outputs.items() if path is not None)
    if wrote:
        good = total - len(errors)
        print(
            f"{good:,} image{'s' * (good != 1)} predicted; {wrote}", file=sys.stderr if args.out is None else sys.stdout
        )
