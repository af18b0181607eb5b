"""Who reads a layer's weight without calling the layer: on an IC unit that would leave the collision out (ours).

``F.conv2d(x, self.conv.weight)`` in a parent's forward pass is found in two ways: by reading the source of what the
forward pass calls (:func:`declared`), which sees the usual way of writing it and needs no input, and by running the
network once (:func:`observed`), which sees every way.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from icnets.hooks import removed_after

__all__ = ["declared", "observed"]

# `.weight.dtype` and its like read no value.
_FACTS = {"dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "size", "dim", "numel", "layout", "grad"}


# -- by reading the source -------------------------------------------------------------------------------------------


def _forward_functions(cls: type) -> Iterator[Any]:
    """The forward pass of a class and the methods that it calls, as far as names tell."""
    methods = {n: f for c in reversed(cls.__mro__) if c is not nn.Module for n, f in vars(c).items()}
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        function = methods.get(waiting.pop())
        if inspect.isfunction(function):
            yield function
            called = set(function.__code__.co_names) & methods.keys() - seen
            seen |= called
            waiting += sorted(called)


Chain = tuple[str, ...]


def _chain(node: ast.expr, known: Mapping[str, Chain]) -> Chain | None:
    """``self.a.b[i]`` as ("a", "b"): attributes from self on; None for anything else. Names may stand for such."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Subscript):
        return _chain(node.value, known)
    if isinstance(node, ast.Attribute):
        rest = _chain(node.value, known)
        return None if rest is None else (*rest, node.attr)
    return None


def _names(tree: ast.AST) -> dict[str, Chain]:
    """Local names for what hangs on self: ``conv = self.conv``, ``for conv in self.convs``."""
    known: dict[str, Chain] = {"self": ()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.For | ast.comprehension):
            target, value = node.target, node.iter
        else:
            continue
        chain = _chain(value, known)
        if isinstance(target, ast.Name) and chain:
            known.setdefault(target.id, chain)
    return known


def _weights_in(function: Any) -> Iterator[Chain]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or no Python
        return
    known = _names(tree)
    facts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in _FACTS}
    compared = {id(m) for n in ast.walk(tree) if isinstance(n, ast.Compare) for m in (n.left, *n.comparators)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in facts | compared:
            chain = _chain(node.value, known)
            if chain:
                yield chain


@cache
def _reads(cls: type) -> tuple[tuple[str, Chain], ...]:
    """(method, attributes) for each ``self.attributes.weight`` that the forward pass of ``cls`` reads."""
    with_weight = [f for f in _forward_functions(cls) if "weight" in f.__code__.co_names]
    return tuple((f.__qualname__, chain) for f in with_weight for chain in _weights_in(f))


def _resolve(module: nn.Module, chain: Chain) -> list[nn.Module]:
    found = [module]
    for name in chain:
        children = [m._modules.get(name) for m in found]
        found = [c for c in children if c is not None]
        # What an index picks isn't known, so every one may be meant.
        found = [m for c in found for m in (c if isinstance(c, nn.ModuleList | nn.Sequential) else [c])]
    return found


def declared(model: nn.Module) -> dict[nn.Module, str]:
    """Each module whose weight the source of a forward pass reads, and the method that does."""
    found: dict[nn.Module, str] = {}
    for parent in model.modules():
        cls: Any = type(parent)
        for method, chain in _reads(cls):
            for child in _resolve(parent, chain):
                found.setdefault(child, method)
    return found


# -- by running the network ------------------------------------------------------------------------------------------


class _Watch(TorchFunctionMode):
    """Notes which of the watched weights any call takes while their layer isn't being called."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.owners = {id(m._parameters.get("weight")): m for m in layers.values()}
        self.inside: list[nn.Module] = []
        self.found: dict[nn.Module, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        for leaf in tree_leaves((args, kwargs or {})) if name != "__get__" else ():
            owner = self.owners.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if owner is not None and owner not in self.inside and name not in _FACTS:
                self.found.setdefault(owner, name)
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        layers = list(self.owners.values())
        handles = [m.register_forward_pre_hook(self.enter) for m in layers]
        handles += [m.register_forward_hook(self.leave) for m in layers]
        with removed_after(handles), self:
            yield


@torch.no_grad()
def observed(model: nn.Module, layers: Mapping[str, nn.Module], args: tuple[Any, ...]) -> dict[nn.Module, str]:
    """Each of ``layers`` whose weight something else reads in ``model(*args)``, and the function that does.

    The model is run in eval mode, and its mode put back.
    """
    modes = {module: module.training for module in model.modules()}
    watch = _Watch(layers)
    try:
        model.eval()
        with watch.hooked():
            model(*args)
    finally:
        for module, training in modes.items():
            module.training = training
    return watch.found
