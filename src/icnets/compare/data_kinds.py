"""The data of comparisons: images by default, or any data module by its import path."""

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from icnets.data.data_module import ImageData
from icnets.support.gone import without_gone


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
        imports: import paths of classes by kind. Every class takes ``seed``; one with an argument ``cache`` is given
            that as well.

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
    if kind == "images":
        rest = without_gone({"data": rest})["data"]
    elif cache is not None and "cache" in signature(make).parameters:
        rest["cache"] = cache
    try:
        data = make(**rest, seed=seed)
    except TypeError as error:
        raise ValueError(f"data of kind {kind} doesn't take these arguments: {error}") from error
    data.setup()
    return data
