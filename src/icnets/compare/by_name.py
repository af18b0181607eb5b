"""The data and the networks of comparisons by name: ours, timm's, or those of an import path."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from icnets.compare.settings import Network
from icnets.data.data_module import ImageData
from icnets.data.tensors import TensorData
from icnets.timm_models import create_model


def imported(path: str) -> Any:
    """The object at an import path.

    Args:
        path: module and name, such as ``studies.solar:SolarCells``.

    Raises:
        ValueError: there is no such module, or no such name in it.

    Example:
        >>> imported("math:gcd")(12, 18)
        6
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} can't be imported: {error}; write it as module:name") from error


def make_data(
    arguments: Mapping[str, Any], seed: int, *, cache: Path | None = None, imports: Mapping[str, str] | None = None
) -> Any:
    """A Lightning data module, its data found and checked.

    Args:
        arguments: ``kind``, "images" (if left out: scikit-learn's digits, or a folder) or a name of ``imports``, and
            the arguments of its class.
        seed: of splits or folds, order and augmentation.
        cache: folder for data that takes long to make.
        imports: import paths of classes by kind. Every class takes ``seed``; a
            :class:`icnets.data.tensors.TensorData` takes ``cache`` as well.

    Raises:
        ValueError: an unknown kind, arguments it doesn't take, or data that can't be used.
    """
    rest, imports = dict(arguments), imports or {}
    kind = rest.pop("kind", "images")
    if kind != "images" and kind not in imports:
        raise ValueError(
            f"data.kind is {kind!r}; it must be one of {', '.join(['images', *imports])}; "
            "imports gives other kinds their import paths"
        )
    make: type[Any] = ImageData if kind == "images" else imported(imports[kind])
    if cache is not None and issubclass(make, TensorData):
        rest["cache"] = cache
    try:
        data = make(**rest, seed=seed)
    except TypeError as error:
        raise ValueError(f"data of kind {kind} doesn't take these arguments: {error}") from error
    data.setup()
    return data


def create(network: Network, *, num_classes: int, in_chans: int, imports: Mapping[str, str] | None = None) -> nn.Module:
    """The network with random weights, not converted.

    Args:
        network: its name is one of ``imports``, or timm's.
        num_classes: of its output.
        in_chans: of its input.
        imports: import paths of functions that make a network, by name.

    Raises:
        ValueError: there is no network of this name.
        TypeError: options that it doesn't take.
    """
    path = (imports or {}).get(network.name)
    build = partial(create_model, network.name, ic=None) if path is None else imported(path)
    own = {} if network.before_norm is None else {"before_norm": network.before_norm}
    return build(num_classes=num_classes, in_chans=in_chans, **network.options, **own)
