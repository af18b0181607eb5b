"""``icnets.compare``: a network and images of one's own, in Python as on the command line."""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icnets.comparison.engine import Comparison, run_comparison
from icnets.comparison.run_files import rebuilt
from icnets.comparison.runs import GIVEN
from icnets.comparison.settings import Settings

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
        5 runs, 5 to do...
        >>> found.runs
        5
    """
    import yaml

    images = dict(data) if isinstance(data, Mapping) else {"root": str(data)}
    name = model if isinstance(model, str) else _given(model)
    if isinstance(model, nn.Module) and weights is not None:
        raise ValueError(f"weights is {weights}, but the network has weights already; leave it out")
    words = ("compare", Path(name).stem, Path(images.get("root") or "digits").resolve().name)
    network: dict[str, Any] = {"name": name}
    if isinstance(model, nn.Module) or weights is not None:
        network["weights"] = None if weights is None else str(weights)
    place = str(out or Path("runs") / re.sub(r"[^\w.-]", "_", "-".join(words)))
    own = {"network": network, "data": images, "minutes": minutes, "workers": 1, "out": place}
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    chosen = rebuilt(Settings, _over(_over(recipe, own), settings), strict=True)
    return run_comparison(chosen, f"icnets.compare({name!r}, {str(data)!r})")


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
