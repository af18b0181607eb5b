"""Who reads a layer's weight without calling the layer: on an IC unit that would leave the collision out.

``F.conv2d(x, self.conv.weight)`` in a parent's forward pass is found by reading the source of what the forward pass
calls (:func:`declared`), which sees the usual way of writing it. Methods beside the forward pass that make other layers
of the weights they read are found likewise (:func:`merging`).
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache, cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

# `.weight.dtype` and its like read no value.
_FACTS = {"dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "size", "dim", "numel", "layout", "grad"}
_VALUES = {"weight", "bias", "data"}  # which stay what they are when they are assigned
# What torch calls by itself.
_IMPLICIT = ("forward", "train")
# Whose methods merge no unit: peft's adapters are on basic layers only.
_OTHERS = ("torch.", "peft.")
# What is called to make a layer, or to put one into a module.
_MAKING = {n for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Linear | nn.modules.conv._ConvNd)}
_MAKING |= {"deepcopy", "setattr", "delattr", "__setattr__", "__delattr__", "add_module", "register_module"}

Chain = tuple[str, ...]  # ``self.a.b[i]`` as ("a", "b"): attributes from self on
Known = dict[str, set[Chain]]  # what each name may stand for


def _function(attribute: Any) -> FunctionType | None:
    """The function behind a method, a property, a decorator; None for anything else."""
    for kind, name in ((property, "fget"), (cached_property, "func"), ((staticmethod, classmethod), "__func__")):
        attribute = getattr(attribute, name) if isinstance(attribute, kind) else attribute
    attribute = inspect.unwrap(attribute) if callable(attribute) else None
    return attribute if inspect.isfunction(attribute) else None


@cache
def _methods(cls: type) -> dict[str, list[FunctionType]]:
    """The definitions of each method, a subclass's before those that it overrides."""
    found: dict[str, list[FunctionType]] = {}
    for c in cls.__mro__:
        for name, attribute in vars(c).items() if c is not nn.Module else ():
            if (function := _function(attribute)) is not None:
                found.setdefault(name, []).append(function)
    return found


@cache
def _used(code: CodeType) -> frozenset[str]:
    """Names of attributes and globals in a function, in those that it defines too."""
    return frozenset(code.co_names).union(*(_used(c) for c in code.co_consts if isinstance(c, CodeType)))


def _helpers(function: FunctionType) -> Iterator[FunctionType]:
    """Functions outside of classes that ``function`` names, without torch's."""
    names = _used(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        members = [vars(value).get(n) for n in names] if isinstance(value, ModuleType) else [value]
        for helper in map(_function, members):
            if helper and not (helper.__module__ or "").startswith("torch."):
                yield helper


def _reached(cls: type, *roots: str, helpers: bool = False) -> list[FunctionType]:
    """The methods ``roots`` of a class and what they call, as far as names tell; ``helpers``: functions as well."""
    methods = _methods(cls)
    waiting = [f for root in roots for f in methods.get(root, [])[: None if root == "__init__" else 1]]
    found: dict[FunctionType, None] = {}
    while waiting:
        function = waiting.pop()
        if function not in found:
            found[function] = None
            names = _used(function.__code__)
            own = [methods[name] for name in names & methods.keys() if name != "__init__"]
            waiting += [f for definitions in own for f in (definitions if "super" in names else definitions[:1])]
            waiting += _helpers(function) if helpers else ()
    return list(found)


def _parts(node: ast.AST) -> list[ast.expr]:
    """What the value of ``node`` may be, or be a part of: its operands, and the object of a method that is called."""
    parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        parts[0] = node.func.value
    return parts


def _chains(node: ast.AST, known: Known) -> set[Chain]:
    """What ``node`` may stand for: nothing if that is unknown."""
    if isinstance(node, ast.Name):
        return known.get(node.id, set())
    if isinstance(node, ast.Attribute):
        return {(*rest, node.attr) for rest in _chains(node.value, known)}
    return {chain for part in _parts(node) for chain in _chains(part, known)}


def _bind(target: ast.expr, value: ast.expr, known: Known) -> None:
    """Notes what the names in ``target`` stand for when ``value`` is assigned to it, or iterated over."""
    if isinstance(target, ast.Name):
        known[target.id] = known.get(target.id, set()) | (_chains(value, known) - {()})
    elif isinstance(target, ast.Tuple | ast.List):
        # Of enumerate(x), zip(x, y) and x.items() the last names stand for the last parts.
        for name, part in zip(reversed(target.elts), reversed(_parts(value)), strict=False):
            _bind(name, part, known)


def _names(tree: ast.AST, own: str) -> Known:
    """Names for what hangs on self: ``conv = self.conv``, ``for i, conv in enumerate(self.convs)``."""
    known: Known = {"self": {()}, own: {()}}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.NamedExpr):
            _bind(node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value, known)
        elif isinstance(node, ast.For | ast.comprehension):
            for value in node.iter.elts if isinstance(node.iter, ast.Tuple | ast.List) else [node.iter]:
                _bind(node.target, value, known)
    return known


class _Source(NamedTuple):
    """``reads``: attributes from self to each object whose weight is read; () where that isn't known.

    ``changes``: attributes of self that are assigned or deleted; "*" for those of other objects, and for a layer that
    is made.
    """

    reads: set[Chain]
    changes: set[str]


@cache
def _source(function: FunctionType) -> _Source:
    code = function.__code__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or no Python
        return _Source({()} if "weight" in _used(code) else set(), {"*"})
    known = _names(tree, code.co_varnames[0] if code.co_argcount else "self")
    silent, reads, changes = set(_not_read(tree)), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in silent:
            reads |= _chains(node.value, known) or {()}
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and node.attr not in _VALUES:
            changes.add(node.attr if _chains(node.value, known) == {()} else "*")
        elif isinstance(node, ast.Call) and _called(node) in _MAKING:
            changes.add("*")
    return _Source(reads, changes)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _weights_in(*nodes: ast.AST) -> list[int]:
    return [id(n) for node in nodes for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "weight"]


def _not_read(tree: ast.AST) -> Iterator[int]:
    """Ids of nodes ``x.weight`` whose values nobody looks at: facts, comparisons, what is only written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr in _FACTS or not isinstance(node.ctx, ast.Load)):
            yield from (id(node.value), id(node))
        elif isinstance(node, ast.Compare):
            yield from map(id, (node.left, *node.comparators))
        elif isinstance(node, ast.Call) and _called(node).endswith("_") and not _called(node).endswith("__"):
            # Writes into what it is called on, or given first.
            yield from _weights_in(node.func) or _weights_in(*node.args[:1])


@cache
def merging(cls: type) -> dict[str, set[Chain]]:
    """Methods of ``cls`` that read weights and change what its forward pass uses, with the ways to the weights' owners.

    The ways are as :func:`resolve` takes them. The forward pass, the constructor and what these call are left out.
    """
    implicit = _reached(cls, *_IMPLICIT, "__init__")
    used = {"*", "forward"}.union(*(_used(f.__code__) for f in _reached(cls, *_IMPLICIT)))
    found = {}
    for name, (function, *_) in _methods(cls).items():
        others = hasattr(nn.Module, name) or function.__module__.startswith(_OTHERS)
        if others or function in implicit or not inspect.isfunction(inspect.getattr_static(cls, name)):
            continue
        reached = _reached(cls, name, helpers=True)
        if any("weight" in _used(f.__code__) for f in reached):  # reading the source is slow
            reads = set().union(*(_source(f).reads for f in reached))
            if reads and any(not used.isdisjoint(_source(f).changes) for f in reached):
                found[name] = reads
    return found


def resolve(module: nn.Module, chain: Chain) -> list[nn.Module]:
    """The modules below ``module`` that a way may lead to: what an index picks isn't known, so every one is meant."""
    found = [module]
    for name in chain:
        children = [c for m in found if (c := m._modules.get(name)) is not None]
        lists = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
        found = [m for c in children for m in (c.children() if isinstance(c, lists) else [c])]
    return found


@cache
def _reads(cls: type) -> list[tuple[str, Chain]]:
    """(method, attributes) for each ``self.attributes.weight`` that the forward pass of ``cls`` reads."""
    reached = _reached(cls, *_IMPLICIT)
    reading = reached if any("weight" in _used(f.__code__) for f in reached) else []
    return [(f.__qualname__, chain) for f in reading for chain in _source(f).reads if chain]


def declared(model: nn.Module) -> dict[nn.Module, str]:
    """Each module whose weight the source of a forward pass reads, and the method that does."""
    found: dict[nn.Module, str] = {}
    for parent in model.modules():
        kind: Any = type(parent)
        for method, chain in _reads(kind):
            for child in resolve(parent, chain):
                found.setdefault(child, method)
    return found
