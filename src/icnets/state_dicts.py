"""State dicts compared before anything is loaded: what is missing, unexpected, or of another shape."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from icnets.messages import few

__all__ = ["mismatch", "shapes", "with_versions"]

Shape = tuple[int, ...] | None  # None: a module's extra state, which is no tensor


def shapes(state_dict: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of every tensor in a state dict; None for what isn't one."""
    return {key: tuple(value.shape) if isinstance(value, Tensor) else None for key, value in state_dict.items()}


def with_versions(state_dict: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """``state_dict`` with the versions in ``own``, the model's state dict: some modules refuse one that has none."""
    result: Any = OrderedDict(state_dict)
    result._metadata = own._metadata
    return result


def mismatch(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """What keeps ``found`` from being loaded where ``expected`` is, each kind with its first names; None: nothing.

    It reads "it lacks a, b, c and 2 more; it has the unknown d; it has the wrong shape of e (2,) instead of (3,)".
    """
    shared = sorted(expected.keys() & found.keys())
    wrong = [k for k in shared if None not in (expected[k], found[k]) and expected[k] != found[k]]
    kinds = {
        "lacks": sorted(expected.keys() - found.keys()),
        "has the unknown": sorted(found.keys() - expected.keys()),
        "has the wrong shape of": [f"{k} {found[k]} instead of {expected[k]}" for k in wrong],
    }
    return "; ".join(f"it {what} {few(names)}" for what, names in kinds.items() if names) or None
