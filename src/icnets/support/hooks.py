"""Running somebody's network without leaving a trace in it: hooks, modes, forward passes, buffers, random state."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


def floating_tensors(output: Any) -> list[Tensor]:
    """Returns the floating-point tensors in what a network returns: nested tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def is_own_forward(module: nn.Module) -> bool:
    """Whether the forward pass on the instance is its class's own, as accelerate's hooks leave it when removed."""
    own, of_class = module.__dict__.get("forward"), inspect.getattr_static(type(module), "forward")
    return inspect.ismethod(own) and own.__self__ is module and own.__func__ is of_class


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks of ``handles`` when the block ends, however it ends; those of a generator are made inside."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Puts each module of ``network`` back into its train or eval mode when the block ends, however it ends."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _forward_as(module: nn.Module, forward: Any) -> Iterator[None]:
    """Gives the instance ``module`` another forward pass for a while; None: that of its class."""
    own = module.__dict__.get("forward")

    def put(value: Any) -> None:
        module.__dict__["forward"] = value
        if value is None:
            del module.__dict__["forward"]

    try:
        put(forward)
        yield
    finally:
        put(own)


@contextmanager
def forward_through(modules: Iterable[nn.Module], around: Callable[..., Any]) -> Iterator[None]:
    """Runs ``around(module, forward, *args, **kwargs)`` instead of each module's forward pass, for a while.

    Unlike a hook this sees ``module.forward(x)`` as well as ``module(x)``.
    """
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            stack.enter_context(_forward_as(module, partial(around, module, module.forward)))
        yield


@contextmanager
def watched(modules: Iterable[nn.Module], see: Callable[[Any, Tensor, Any], Any]) -> Iterator[None]:
    """Calls ``see(module, x, output)`` after each forward pass of ``modules``, for a while.

    What it returns, unless that is None, takes the output's place, before the module's own hooks see it.
    ``x`` is the first tensor of the call's arguments, by position or by name: ``conv(x)``, ``conv(input=x)``,
    ``conv.forward(x)``. While ``see`` runs, the module's forward pass is its own.
    """
    own = {module: module.__dict__.get("forward") for module in modules}

    def around(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with _forward_as(module, own[module]):
            seen = see(module, x, output)
        return output if seen is None else seen

    with forward_through(own, around):
        yield


@contextmanager
def undisturbed(model: nn.Module, *, evaluating: bool = True) -> Iterator[None]:
    """Puts ``model`` into eval mode for the block; its modes, its buffers and the random state come back after it.

    With ``evaluating`` False, it stays in the modes that it is in.
    """
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    kept = {b for _, own in tables for b in own.values() if not (b is None or is_lazy(b) or b.is_meta)}
    values = [(buffer, buffer.detach().clone()) for buffer in kept]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"} - {None}
    with torch.random.fork_rng(devices=sorted(devices)), modes_kept(model):
        try:
            if evaluating:
                model.eval()
            yield
        finally:
            for table, own in tables:
                table.clear()
                table.update(own)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
