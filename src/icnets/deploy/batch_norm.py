"""Which batch norms can be folded into the layer before them: found by running the network once, not by tracing it."""

import gc
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icnets.support.hooks import forward_through, removed_after
from icnets.unit.deployed_form import Affine

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# torchvision's and timm's: known by name, not imported; what stays of the latter is drop and act.
_FROZEN_NORMS = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
_NAMED = (*_FROZEN_NORMS, "BatchNormAct2d", "SyncBatchNormAct")


# -- who reads whose output ------------------------------------------------------------------------------------------


class Consumers(TorchDispatchMode):
    """Runs beside one forward pass and notes which batch norms, or what else, read each layer's output.

    Every operator passes here, so that no way of writing the forward pass can hide a reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[nn.Module, list[Tensor]] = {}  # kept alive, so that no id is given twice
        self.readers: dict[int, set[nn.Module | None]] = {}  # None: anything that isn't a batch norm
        self.inputs: dict[nn.Module, list[int]] = {}
        self.inside: list[nn.Module] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self.readers:
                self.readers[id(leaf)].add(self.inside[-1] if self.inside else None)
        return func(*args, **(kwargs or {}))

    def made(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            # A layer that handed out the same tensor twice would be its own second reader.
            self.readers[id(output)] = {None} if id(output) in self.readers else set()
            self.outputs.setdefault(module, []).append(output)

    def read(self, norm: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        # Ids of other tensors would be given again to later ones; 0 is nobody's.
        known = bool(args) and id(args[0]) in self.readers
        self.inputs.setdefault(norm, []).append(id(args[0]) if known else 0)
        self.inside.append(norm)
        try:
            return forward(*args, **kwargs)
        finally:
            self.inside.pop()

    @contextmanager
    def watch(self, layers: list[nn.Module], norms: list[nn.Module]) -> Iterator[None]:
        handles = (layer.register_forward_hook(self.made) for layer in layers)
        with removed_after(handles), forward_through(norms, self.read), self:
            yield

    def kept(self) -> set[int]:
        """Returns ids of the outputs that something still holds after the pass: the result, a module, a cache."""
        if self._held():
            gc.collect()  # a reference cycle that is garbage holds nothing
        return self._held()

    def _held(self) -> set[int]:
        alone = {sys.getrefcount(t) for tensors in [[torch.empty(0)]] for t in tensors}.pop()
        return {id(t) for tensors in self.outputs.values() for t in tensors if sys.getrefcount(t) > alone}

    def partner(self, norm: nn.Module, kept: set[int]) -> nn.Module | str:
        """Finds the layer whose output ``norm`` alone reads, at every call of either; or says why there is none."""
        reads = self.inputs.get(norm)
        if not reads:
            return "the example input doesn't reach it"
        sources = {layer for layer, made in self.outputs.items() for t in made if id(t) in reads}
        if not sources:
            return "its input is not the output of a convolution or linear layer"
        layer = next(iter(sources))
        made = self.outputs[layer]
        if len(sources) > 1 or sorted(reads) != sorted(id(t) for t in made):
            return "it or the layer before it is shared"
        if any(self.readers[id(t)] != {norm} or id(t) in kept for t in made):
            return "something else reads its input too"
        dims = 2 if isinstance(layer, nn.Linear) else len(cast(Any, layer).kernel_size) + 2
        return layer if all(t.dim() == dims for t in made) else "its channels are not the layer's"


# -- the batch norms themselves --------------------------------------------------------------------------------------


class FoldedNormAct(nn.Sequential):
    """What stays of a norm-and-activation layer once its norm is folded: ``act(drop(x))``, any shape."""


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or type(module).__name__ in _FROZEN_NORMS


def affine_of(norm: nn.Module) -> Affine | str:
    """Writes the norm as ``scale * z + shift``, or says why it isn't one."""
    vectors = (getattr(norm, name, None) for name in ("running_mean", "running_var", "weight", "bias"))
    mean, var, weight, bias = (None if v is None else v.detach().to("cpu", torch.float64) for v in vectors)
    if mean is None or var is None:
        return "it has no running statistics"
    scale = (1 if weight is None else weight) * (var + cast(float, norm.eps)).rsqrt()
    shift = (0 if bias is None else bias) - mean * scale
    if not bool((scale.isfinite() & shift.isfinite()).all()):
        return "its statistics are not finite"
    return Affine(scale, shift)


def obstacle_to_folding(norm: nn.Module) -> str | None:
    if norm._forward_hooks or norm._forward_pre_hooks:
        return "it has forward hooks"
    if parametrize.is_parametrized(norm) or "forward" in norm.__dict__:
        return "it has behaviour of its own"
    affine = affine_of(norm)
    if isinstance(affine, str):
        return affine
    known = type(norm) in _NORMS or type(norm).__name__ in _NAMED
    return None if known else f"{type(norm).__name__} has behaviour of its own"


def remove_norm_(norm: nn.Module) -> None:
    """Makes the norm object an identity, or its activation: every reference to it stays valid."""
    kept = {name: module for name in ("drop", "act") if (module := norm._modules.get(name)) is not None}
    rest = FoldedNormAct(OrderedDict(kept)) if kept else nn.Identity()
    rest.training = norm.training
    norm.__class__ = type(rest)
    norm.__dict__.clear()
    norm.__dict__.update(rest.__dict__)
