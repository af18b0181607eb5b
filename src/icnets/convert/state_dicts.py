"""State dicts compared before anything is loaded: what is missing, unexpected, or of another shape or type."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from icnets.support.text import few

Shape = tuple[int, ...] | None  # None: a module's extra state, which is no tensor

_WRAPPED_PART = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(\.|$)")


def shapes(state_dict: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns the shape of every tensor in a state dict; None for what isn't one."""
    return {key: tuple(value.shape) if isinstance(value, Tensor) else None for key, value in state_dict.items()}


def mismatch(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """Says what keeps ``found`` from being loaded where ``expected`` is; None: they fit.

    Each kind comes with its first names: "it lacks a, b, c and 2 more; it has the unknown d; it has the wrong shape of
    e (2,) instead of (3,)".
    """
    shared = sorted(expected.keys() & found.keys())
    wrong = [k for k in shared if None not in (expected[k], found[k]) and expected[k] != found[k]]
    kinds = {
        "lacks": sorted(expected.keys() - found.keys()),
        "has the unknown": sorted(found.keys() - expected.keys()),
        "has the wrong shape of": [f"{k} {found[k]} instead of {expected[k]}" for k in wrong],
    }
    return "; ".join(f"it {what} {few(names)}" for what, names in kinds.items() if names) or None


def unloadable(model: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """Says why ``state_dict``, whose keys and shapes fit, would make another network of ``model``; None: it wouldn't.

    Integers, as of a quantised network, aren't weights; and tensors that the model shares can't have two values.
    """
    for key, a in sorted(model.state_dict().items()):
        b = state_dict.get(key)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            integer = a.is_floating_point() and not b.is_floating_point()
            if integer or (b.is_complex() and not a.is_complex()):
                return f"it has the wrong type of {key} {b.dtype} instead of {a.dtype}"
    first: dict[int, str] = {}
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for key, value in chain(*named):
        one = first.setdefault(id(value), key)
        if one in state_dict and key in state_dict and not _same(state_dict[one], state_dict[key]):
            return f"it has different values for {one} and {key}, which the model shares"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()))


def refuse_without_values(model: nn.Module, error: type[Exception] = ValueError) -> None:
    """Raises ``error`` for a model with a tensor on the meta device, TypeError for one as ``fully_shard`` leaves it.

    Nothing can be loaded into the former; of the latter each process has a part.
    """
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if value.is_meta:
            raise error(f"can't be loaded: {name} of the model is on the meta device; call model.to_empty first")
        if hasattr(value, "full_tensor"):
            raise TypeError(f"{name} of the model is a sharded {type(value).__name__}; load first, then shard it")


def whole_tensor(key: str, value: Any) -> Tensor:
    """Returns ``value`` of a state dict; TypeError where it is no tensor, or one without all of its values."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{key!r} is a {type(value).__name__}; it must be a tensor")
    if is_lazy(value):
        raise TypeError(f"{key!r} has no shape yet; run one batch through the model first")
    if hasattr(value, "full_tensor"):
        raise TypeError(f"{key!r} is a sharded {type(value).__name__}; gather the weights, and save them as state=")
    if value.is_meta:
        raise TypeError(f"{key!r} is on the meta device and has no values; load the weights first (by to_empty)")
    return value


def plain_tensor(key: str, value: Any) -> Tensor:
    """Returns ``value`` of a state dict, on the CPU and contiguous.

    Raises:
        TypeError: safetensors can't hold it, or would hold it as something else: no tensor, one without values or in
            another form (meta, lazy, sharded, quantised, sparse).
    """
    value = whole_tensor(key, value)
    kind = type(value)
    foreign = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ or value.is_quantized
    if foreign or value.layout != torch.strided or value.dtype == torch.complex128:
        form = f"a {kind.__name__} of {value.dtype}, {value.layout}"
        remedy = "pass plain weights as state= (.dequantize(), .to_dense(), .to(torch.complex64))"
        raise TypeError(f"{key!r} is {form}, which safetensors can't hold; {remedy}")
    return value.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()


def plain_name(name: str) -> str:
    """Returns a name of a module or tensor without the wrappers of parts of the network (compiled, checkpointed)."""
    return _WRAPPED_PART.sub("", name).removesuffix(".") if "_" in name else name


def without_wrapper(state_dict: Mapping[str, Any], expected: Iterable[str]) -> dict[str, Any]:
    """Returns ``state_dict`` under the names ``expected``, if only a wrapper's prefix (``module.``) differs."""
    state, wanted = {plain_name(key): value for key, value in state_dict.items()}, set(expected)
    if "n_averaged" not in wanted:  # AveragedModel's own buffer
        state.pop("n_averaged", None)
    while state and state.keys() != wanted and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state
