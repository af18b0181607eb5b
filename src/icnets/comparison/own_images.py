"""``icnets.compare``: a network and images of one's own, in Python as on the command line."""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from icnets import checkpoint
from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg, read_notes
from icnets.comparison.engine import Comparison, run_comparison
from icnets.comparison.run_files import rebuilt
from icnets.comparison.runs import GIVEN
from icnets.comparison.settings import Settings
from icnets.open_network import network_file, notes_of_start
from icnets.support.named_code import names_code

RECIPE = files("icnets.comparison").joinpath("own_images.yaml")


def compare(
    model: str | nn.Module,
    data: str | Path | Mapping[str, Any],
    *,
    minutes: float | None = 20,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Fine-tunes a trained network on your images, as it is and as an IC network, and says which to keep.

    The rows, and how they are trained, are those of ``icnets compare FOLDER --model NAME``. It is done in this process,
    by one thread, and gives the command's numbers; with more ``workers`` it is faster, and then a script needs
    ``if __name__ == "__main__":``, as always with processes.

    Args:
        model: a name that the commands take, such as resnet50, or a network with a head for the classes of ``data``,
            which stays as it is.
        data: folder of images, or options of :class:`icnets.data.data_module.ImageData`.
        minutes: that it may take; None: epochs and seeds are those of ``settings``.
        weights: file of the weights to start from; timm's pretrained ones by default. A network has its own.
        out: folder of the results; by default a folder in ``runs``, named after both.
        **settings: others of :class:`icnets.comparison.settings.Settings`, such as ``training={"epochs": 5}``.

    Returns:
        What prints the table and the verdict, and knows its files.

    Raises:
        ValueError: as for the command: a network, images, weights or settings that can't be used.

    Example:
        >>> import tempfile
        >>> found = compare(
        ...     "resnet10t", {"image_size": 16, "train_size": 50}, minutes=None, out=tempfile.mkdtemp(), seeds=[0],
        ...     network={"weights": None, "options": {"channels": [8, 8, 8, 8], "stem_width": 8}},
        ...     training={"epochs": 1, "extra_epochs": 1},
        ... )  # doctest: +ELLIPSIS
        measuring 5 networks...
        >>> found.runs
        5
    """
    import yaml

    images = dict(data) if isinstance(data, Mapping) else {"root": str(data)}
    if isinstance(model, nn.Module):
        if weights is not None:
            raise ValueError(f"weights is {weights}, but the network has weights already; leave it out")
        own: dict[str, Any] = {"network": {"name": _given(model), "weights": None}, "out": default_out(model, images)}
    else:
        own = for_network(model, None if weights is None else str(weights), images)
    own |= {"minutes": minutes, "workers": 1} | ({} if out is None else {"out": str(out)})
    own["data"] = {**own.get("data", {}), **images}
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    chosen = rebuilt(Settings, _over(_over(recipe, own), settings), strict=True)
    return run_comparison(chosen, f"icnets.compare({own['network']['name']!r}, {str(data)!r})")


def for_network(model: str, weights: str | None, images: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a network and its weights bring along: its name, where it starts, and how its images are made.

    Args:
        model: timm's name, a checkpoint of icnets, or code.
        weights: file of weights; None: those of the checkpoint, or timm's pretrained ones.
        images: options of the data, which go before what the network's file says.

    Raises:
        ValueError: a checkpoint of an IC network, or of one that timm doesn't make; code without weights.
    """
    network: dict[str, Any] = {"name": model, "weights": weights or "pretrained"}
    notes, file = ImageNotes(), network_file(model)
    if file is not None:
        header, _, strings = checkpoint.read(file)
        made = header.get("architecture") or {}
        if header["layers"] or made.get("factory") != "timm.create_model":
            what = "has IC units already" if header["layers"] else "is no network of timm's"
            raise ValueError(f"{model} {what}; give the basic network, or its code and --weights {model}")
        options = {k: v for k, v in made["args"].items() if k not in ("num_classes", "in_chans", "model_name")}
        network = {"name": made["args"]["model_name"], "weights": weights or str(file), "options": options}
        notes = read_notes(strings)
    elif names_code(model):
        if weights is None:
            raise ValueError(f"{model} needs the weights that it starts from: give --weights FILE")
        notes = notes_of_start(Path(weights))
    elif (cfg := get_pretrained_cfg(model.removeprefix("ic_"), allow_unregistered=True)) is not None:
        notes = notes_of_cfg(cfg.to_dict())
    channels = int(images.get("in_chans") or 3)
    seen = {name: getattr(notes, name) or () for name in ("mean", "std")}
    said = {name: list(v) for name, v in seen.items() if len(v) == channels and images.get(name) is None}
    if images.get("root") is None and images.get("train_shards") is None:  # digits, which have their own
        said = {}
    return {"network": network, "data": said, "out": default_out(model, images)}


def default_out(model: str | nn.Module, images: Mapping[str, Any]) -> str:
    """A folder in ``runs`` named after the network and the images."""
    name = Path(model).stem if isinstance(model, str) else type(model).__name__
    words = ("compare", name, Path(images.get("root") or "digits").resolve().name)
    return str(Path("runs") / re.sub(r"[^\w.-]", "_", "-".join(words)))


def _given(model: nn.Module) -> str:
    """The name under which the runs of this process find a network."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    name = f"{type(model).__name__}-{digest.hexdigest()[:8]}"
    GIVEN[name] = model
    return name


def _over(below: Any, above: Any) -> Any:
    """Two nested mappings in one, in which the latter's values hold."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: _over(below.get(name), value) for name, value in above.items()}}
