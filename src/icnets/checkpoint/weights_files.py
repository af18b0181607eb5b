"""Weights for a network that is there already: from checkpoints of icnets and from others' files of weights."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from icnets.checkpoint.foreign import Weights, read_weights
from icnets.checkpoint.image_notes import read_notes
from icnets.checkpoint.safetensors_file import load, read
from icnets.convert.state_dicts import shapes
from icnets.convert.surgery import load_basic_state_dict
from icnets.support.text import tell


def load_weights(network: nn.Module, path: Path, *, new_head: bool = True) -> str:
    """Load trained weights into a basic network, in place.

    Args:
        network: the basic network; it becomes an IC network if the checkpoint holds one.
        path: what ``icnets.save`` wrote, or a plain state dict of the basic network (.pth, .pt, .safetensors).
        new_head: where the file's last layer has another number of classes, that of ``network`` stays as it is.

    Returns:
        Where in the file the weights are, "" if they are all of it; see
        :func:`icnets.checkpoint.foreign.read_weights`.

    Raises:
        ValueError: the file is missing, damaged, or doesn't fit the network.
    """
    path, ours = Path(path), written_by_icnets(Path(path))
    weights = weights_of(path, network)
    head = new_head_of(network, weights.state) if new_head else None
    with _replaced(network, head):
        if ours:
            load(path, network)
        else:
            try:
                load_basic_state_dict(network, weights.state)
            except ValueError as error:
                of = f", of which {weights.origin} was read," if weights.origin else ""
                raise ValueError(f"{path}{of} doesn't fit the network: {error}") from error
    if head is not None and read_notes(strings_of(path) or {}).class_names is None:  # else the data's are compared
        tell(f"{path} is of {head[1]} classes: the last layer, {head[0]}, is new, and the rest has the file's weights")
    return weights.origin


def weights_of(path: Path, network: nn.Module) -> Weights:
    """What a file holds for ``network``: all tensors of ``icnets.save``'s, the state dict in any other."""
    if written_by_icnets(path):
        return Weights(read(path)[1], "")
    return read_weights(path, network.state_dict())


def new_head_of(network: nn.Module, state: Mapping[str, Any]) -> tuple[str, int] | None:
    """The last layer and how many classes ``state`` has for it, if nothing else has another shape there."""
    own, found = shapes(network.state_dict()), shapes(state)
    wrong = [key for key in own.keys() & found.keys() if own[key] != found[key]]
    if len({key.rpartition(".")[0] for key in wrong}) != 1:
        return None
    name, (first, *_) = wrong[0].rpartition(".")[0], {(found[key] or (0,))[0] for key in wrong}
    rest = all((own[key] or ())[1:] == (found[key] or ())[1:] for key in wrong)
    return (name, first) if rest and isinstance(network.get_submodule(name), nn.Linear | nn.Conv2d) else None


def require_whole(network: nn.Module, path: Path) -> None:
    """Raises ValueError where the last layer of ``network`` isn't the file's, and so can't be evaluated."""
    if (head := new_head_of(network, weights_of(path, network).state)) is not None:
        own = network.get_submodule(head[0]).weight.shape[0]  # type: ignore[union-attr, index]
        raise ValueError(f"{path} is of {head[1]} classes, and the data has {own}; give images of the same classes")


@contextmanager
def _replaced(network: nn.Module, head: tuple[str, int] | None) -> Iterator[None]:
    """Within, the last layer has another number of outputs; afterwards it is the one that it was."""
    if head is None:
        yield
        return
    name, classes = head
    own: Any = network.get_submodule(name)
    other = copy.deepcopy(own)
    for key, value in own.named_parameters(recurse=False):
        setattr(other, key, nn.Parameter(value.new_zeros(classes, *value.shape[1:])))
    setattr(other, "out_features" if isinstance(own, nn.Linear) else "out_channels", classes)
    network.set_submodule(name, other)
    try:
        yield
    finally:
        network.set_submodule(name, own)


def strings_of(path: Path) -> dict[str, str] | None:
    """The strings in the header of a .safetensors file; None for any other file, and a damaged one."""
    with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
    return None


def noted(path: Path) -> dict[str, str]:
    """What is noted beside the weights in a file of ``icnets.save``; nothing for any other file."""
    strings = strings_of(path) or {}
    return {k: v for k, v in strings.items() if k not in ("format", "icnets")} if "icnets" in strings else {}


def written_by_icnets(path: Path) -> bool:
    """Whether ``icnets.save`` wrote a file; True for a damaged .safetensors too, which reading it explains."""
    strings = strings_of(path)
    return path.is_file() and path.suffix == ".safetensors" if strings is None else "icnets" in strings


def holds_ic_network(path: Path) -> bool:
    """Whether a file is a checkpoint of ``icnets.save`` that has IC units; False if it is missing."""
    return "icnets" in (strings_of(path) or ()) and bool(read(path)[0]["layers"])
