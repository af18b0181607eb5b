"""State dicts compared before anything is loaded: what is missing, unexpected, or of another shape or type."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from icnets.support.text import few

__all__ = [
    "mismatch",
    "on_meta",
    "plain_name",
    "plain_tensor",
    "refuse_without_values",
    "shapes",
    "unloadable",
    "with_versions",
    "without_wrapper",
]

Shape = tuple[int, ...] | None  # None: a module's extra state, which is no tensor

_WRAPPED_PART = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(\.|$)")
_COUNT = "n_averaged"  # AveragedModel's own buffer


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


def unloadable(model: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """Why ``state_dict``, whose keys and shapes fit, would still make another network of ``model``; None: it wouldn't.

    Whole numbers, as of a quantised network, aren't weights; and tensors that the model shares can't have two values.
    """
    own = model.state_dict()
    wrong = []
    for key in sorted(own.keys() & state_dict.keys()):
        a, b = own[key], state_dict[key]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            real = a.is_floating_point() and not b.is_floating_point()
            if real or (b.is_complex() and not a.is_complex()):
                wrong.append(f"{key} {b.dtype} instead of {a.dtype}")
    if wrong:
        return f"it has the wrong type of {few(wrong)}"
    first: dict[int, str] = {}
    for key, value in chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    ):
        one = first.setdefault(id(value), key)
        if one != key and one in state_dict and key in state_dict and not _same(state_dict[one], state_dict[key]):
            return f"it has different values for {one} and {key}, which the model shares"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()))


def on_meta(model: nn.Module) -> str | None:
    """The first tensor of ``model`` that is on the meta device, where it has no values; None if there is none."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, value in tensors if value.device.type == "meta"), None)


def refuse_without_values(state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises TypeError for what takes the place of a tensor of ``own`` and isn't a whole tensor with values."""
    for key, value in state_dict.items():
        if not isinstance(own[key], Tensor):
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} of the state dict is a {type(value).__name__}; it must be a tensor")
        if value.is_meta:
            raise TypeError(f"{key} of the state dict is a tensor on meta, without values; it must be a tensor")
        if hasattr(value, "full_tensor"):
            raise TypeError(
                f"{key} of the state dict is a {type(value).__name__}, of which each process has a part; gather the "
                "weights on all processes, .full_tensor()"
            )


def plain_tensor(key: str, value: Any) -> Tensor:
    """``value`` of a state dict, on the CPU and contiguous.

    Raises:
        TypeError: what safetensors can't hold, or would hold as something else: no tensor, one without values or in
            another form (meta, lazy, sharded, quantised, sparse).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{key!r} is a {type(value).__name__}; safetensors holds tensors only")
    if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise TypeError(f"{key!r} has no shape yet; run one batch through the model first")
    kind = type(value)
    if hasattr(value, "full_tensor"):
        raise TypeError(
            f"{key!r} is a {kind.__name__}, of which each process has a part; "
            "gather the weights on all processes, and pass them as state="
        )
    if getattr(kind, "__torch_dispatch__", None) is not Tensor.__torch_dispatch__:
        raise TypeError(
            f"{key!r} is a {kind.__name__}, which safetensors can't hold; save the network before it is quantised, "
            "or pass plain weights (.dequantize()) as state="
        )
    if value.is_meta:
        raise TypeError(
            f"{key!r} is on the meta device and has no values; model.to_empty(device='cpu') makes room for them, then "
            "load or initialise the weights before save; those that accelerate has offloaded come back by "
            "accelerate.hooks.remove_hook_from_submodules(model)"
        )
    if value.is_quantized or value.layout != torch.strided:
        form, remedy = ("quantised", "dequantize") if value.is_quantized else (f"{value.layout}", "to_dense")
        raise TypeError(f"{key!r} is {form}, which safetensors can't hold; pass plain weights (.{remedy}()) as state=")
    if value.dtype == torch.complex128:
        raise TypeError(f"{key!r} is {value.dtype}, which safetensors can't hold; use complex64, or two real tensors")
    return value.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()


def plain_name(name: str) -> str:
    """The name of a module or a tensor without the wrappers of a part of the network (compiled, checkpointed)."""
    return _WRAPPED_PART.sub("", name).removesuffix(".") if "_" in name else name


def without_wrapper(state_dict: Mapping[str, Any], expected: Iterable[str]) -> dict[str, Any]:
    """``state_dict`` under the names ``expected``, if only a wrapper's ``module.`` or ``_orig_mod.`` differs."""
    state, wanted = {plain_name(key): value for key, value in state_dict.items()}, set(expected)
    if _COUNT not in wanted:
        state.pop(_COUNT, None)
    while state and state.keys() != wanted and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state
