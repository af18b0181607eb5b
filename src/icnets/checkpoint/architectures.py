"""The call that makes a network anew, noted beside it, and compared with what the network is when that is saved."""

import json
import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from icnets.convert.state_dicts import Shape, mismatch, plain_name, shapes
from icnets.convert.structure import Structure, difference, structure_of, vector_keys
from icnets.support.text import few, first_line

# A checkpoint names one of these and its arguments; nothing else is imported on a file's say-so.
FACTORIES = ("timm.create_model", "torchvision.models.get_model")


def remember_architecture(model: nn.Module, factory: str, args: Mapping[str, Any]) -> None:
    """Notes on ``model`` the call that makes its basic network, for ``save``."""
    model.__dict__["icnets_architecture"] = {"factory": factory, "args": dict(args)}


def make(factory: str, args: Mapping[str, Any]) -> nn.Module:
    """Makes the basic network, with random weights. Raises what the factory raises, and ImportError without it."""
    model: nn.Module = pkgutil.resolve_name(factory)(**args)
    return model


@lru_cache(maxsize=16)
def _made(text: str) -> tuple[Structure, dict[str, Shape]]:
    """Structure and shapes of what a call makes; ``text`` is the call as JSON. Random numbers are left alone."""
    call = json.loads(text)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # no memory, no time for weights
                model = make(**call)
        except Exception:  # some constructors compute with their tensors
            with torch.device("cpu"):
                model = make(**call)
    return structure_of(model), shapes(model.state_dict())


def _problem(model: nn.Module, call: Mapping[str, Any]) -> str | None:
    """Where ``model``, its collisions aside, isn't what ``call`` makes; None: it is."""
    try:
        structure, wanted = _made(json.dumps(call, sort_keys=True))
    except Exception as error:  # whatever a library raises
        return f"the call fails: {first_line(error)}"
    if found := difference(structure, structure_of(model), complete=True):
        return few(list(found))
    new, own = vector_keys(model), shapes(model.state_dict())
    return mismatch(wanted, {plain_name(key): shape for key, shape in own.items() if key not in new})


def _adapted(model: Any, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """timm's call with the number of classes and the pooling that ``model`` has by now, as after reset_classifier."""
    classifier = None
    with suppress(Exception):  # a network without one
        classifier = model.get_classifier()
    weight = getattr(classifier, "weight", ())
    found = {"num_classes": len(weight)} if len(weight) or isinstance(classifier, nn.Identity) else {}
    yield {**call, "args": {**call["args"], **found}}
    pools = [getattr(m, name, None) for m in model.modules() for name in ("pool_type", "global_pool")]
    if pool := next((p for p in pools if isinstance(p, str)), None):
        yield {**call, "args": {**call["args"], **found, "global_pool": pool}}


def confirmed(model: nn.Module, given: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, str | None]:
    """Finds the call that makes the basic network of ``model`` as it is now.

    Args:
        model: the network, without wrappers.
        given: the user's own claim; None: what was noted when the network was made.

    Raises:
        ValueError: a claim of an unknown factory, of arguments that aren't plain data, or that isn't true.
    """
    claim = vars(model).get("icnets_architecture") if given is None else given
    if claim is None:
        return None, None
    call = {"factory": claim.get("factory", ""), "args": dict(claim.get("args", {}))}
    if call["factory"] not in FACTORIES:
        raise ValueError(f"factory is {call['factory']!r}; it must be one of {', '.join(FACTORIES)}")
    try:
        call = json.loads(json.dumps(call))  # as it will be read
    except TypeError as error:
        raise ValueError(f"the architecture's arguments must be plain data: {error}") from None
    if (problem := _problem(model, call)) is None:
        return call, None
    for candidate in _adapted(model, call) if call["factory"] == "timm.create_model" else ():
        if _problem(model, candidate) is None:
            return candidate, None
    if given is not None:
        what = f"architecture says {call['factory']} with {call['args']}, but the model isn't what that makes"
        raise ValueError(f"{what}: {problem}; correct it, or leave it out and pass the basic network to load")
    problem = f"the network isn't what {call['factory']} made any more ({problem})"
    warnings.warn(f"{problem}; load will need it: load(path, model=...), changed likewise", stacklevel=3)
    return None, problem
