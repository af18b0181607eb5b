"""Who reads a layer's weight without calling the layer: on an IC unit that would leave the collision out.

``F.conv2d(x, self.conv.weight)`` in a parent's forward pass is found in two ways: by reading the source of what the
forward pass calls (:func:`declared`), which sees the usual way of writing it and needs no input, and by running the
network once (:func:`observed`), which sees every way. Methods beside the forward pass that make other layers of the
weights they read are found by their source as well (:func:`merging`).
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from icnets.support.hooks import as_call, forward_through, undisturbed

# `.weight.dtype` and its like read no value.
_FACTS = {"dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "size", "dim", "numel", "layout", "grad"}
# What torch calls by itself.
_IMPLICIT = ("forward", "train")

Chain = tuple[str, ...]


# -- by reading the source -------------------------------------------------------------------------------------------


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


def _helpers(function: FunctionType, names: frozenset[str]) -> Iterator[FunctionType]:
    """Functions outside of classes that ``function`` names, torch's left out but for those that fold a norm."""
    for name in names:
        value = function.__globals__.get(name)
        members = [vars(value).get(n) for n in names] if isinstance(value, ModuleType) else [value]
        for helper in map(_function, members):
            module = getattr(helper, "__module__", None) or ""
            if helper and (not module.startswith("torch.") or module == "torch.nn.utils.fusion"):
                yield helper


def _reached(
    cls: type,
    root: str,
    calls: Callable[[FunctionType], frozenset[str]],
    helpers: bool = False,
    changing: bool = True,
) -> list[FunctionType]:
    """The method ``root`` of a class and what it calls, as far as names tell; ``helpers``: functions as well.

    ``calls`` gives the names of the methods that a function may call. Without ``changing`` the search stops at methods
    that change the module.
    """
    methods = _methods(cls)
    waiting = methods.get(root, [])[: None if root == "__init__" else 1]  # constructors call each other
    found: dict[FunctionType, None] = {}
    while waiting:
        function = waiting.pop()
        if function not in found and (changing or not _source(function).changes):
            found[function] = None
            names = _used(function.__code__)
            definitions = [methods[name] for name in sorted(calls(function) & methods.keys())]
            waiting += [f for own in definitions for f in (own if "super" in names else own[:1])]
            waiting += _helpers(function, names) if helpers else ()
    return list(found)


def _may_read(cls: type, root: str, helpers: bool = False) -> bool:
    """Whether a weight is named anywhere; reading the source is slow."""
    return any("weight" in _used(f.__code__) for f in _reached(cls, root, lambda f: _used(f.__code__), helpers))


def _called(cls: type, *roots: str) -> dict[FunctionType, None]:
    return dict.fromkeys(f for root in roots for f in _reached(cls, root, lambda f: _source(f).calls))


Known = dict[str, tuple[Chain, ...]]  # what each name may stand for


def _chains(node: ast.AST, known: Known) -> tuple[Chain, ...]:
    """``self.a.b[i]`` as ("a", "b"): attributes from self on; several where it may be one of them, () if unknown."""
    if isinstance(node, ast.Name):
        return known.get(node.id, ())
    if isinstance(node, ast.Attribute):
        return tuple((*rest, node.attr) for rest in _chains(node.value, known))
    parts: list[ast.AST] = []
    if isinstance(node, ast.Subscript):
        parts = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):  # list(self.convs)
        parts = [*node.args]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
        parts = [node.func.value]
    elif not isinstance(node, ast.Call | ast.Compare | ast.BinOp):
        parts = list(ast.iter_child_nodes(node))
    return tuple(c for part in parts for c in _chains(part, known))


def _bind(target: ast.expr, value: ast.expr, known: Known) -> None:
    """Notes what the names in ``target`` stand for when ``value`` is assigned to it, or iterated over."""
    if isinstance(target, ast.Name):
        if chains := tuple(c for c in _chains(value, known) if c):
            known.setdefault(target.id, chains)
    elif isinstance(target, ast.Tuple | ast.List):
        if isinstance(value, ast.Call):  # enumerate(x), zip(x, y), x.items(): the last names stand for the last parts
            parts = [*([value.func.value] if isinstance(value.func, ast.Attribute) else []), *value.args]
        else:
            parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        for name, part in zip(reversed(target.elts), reversed(parts), strict=False):
            _bind(name, part, known)


def _self_of(function: FunctionType, tree: ast.Module) -> str:
    """How a method calls its own object, mostly "self"."""
    code, above = function.__code__, function.__qualname__.rpartition(".")[0]
    static = any("staticmethod" in ast.unparse(d) for d in getattr(tree.body[0], "decorator_list", ()))
    is_method = above and not above.endswith("<locals>") and code.co_argcount and not static
    return code.co_varnames[0] if is_method and code.co_varnames[0] != "cls" else "self"


def _names(tree: ast.AST, own: str) -> Known:
    """Names for what hangs on self: ``conv = self.conv``, ``for i, conv in enumerate(self.convs)``."""
    known: Known = {"self": ((),), own: ((),)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            _bind(node.targets[0], node.value, known)
        elif isinstance(node, ast.For | ast.comprehension):
            literal = isinstance(node.target, ast.Tuple) and isinstance(node.iter, ast.Tuple | ast.List)
            _bind(node.target, ast.Constant(None) if literal else node.iter, known)
        elif isinstance(node, ast.NamedExpr):
            _bind(node.target, node.value, known)
    return known


class _Source(NamedTuple):
    """``reads``: attributes from self to each object whose weight is read; None where that isn't known.

    ``changes``: attributes of self that are assigned, deleted or changed; "*" for anything else that is, and for a
    layer that is made.
    ``calls``: what may be methods of self, or of a base class.
    """

    reads: tuple[Chain | None, ...]
    changes: frozenset[str]
    calls: frozenset[str]


@cache
def _source(function: FunctionType) -> _Source:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or no Python
        names = _used(function.__code__)
        return _Source((None,) if "weight" in names else (), frozenset("*"), names)
    own = _self_of(function, tree)
    known = _names(tree, own)
    silent = set(_not_read(tree))
    nodes = list(ast.walk(tree))
    attributes = [n for n in nodes if isinstance(n, ast.Attribute)]
    weights = [n for n in attributes if n.attr == "weight"]
    return _Source(
        tuple(c for n in weights if id(n) not in silent for c in _chains(n.value, known) or (None,)),
        frozenset(name for node in nodes for name in _changes(node, known)),
        frozenset(n.attr for n in attributes if _is_own(n, own)),
    )


def _is_own(node: ast.Attribute, own: str) -> bool:
    """Whether the node looks up a member of the function's own object or class."""
    loaded = isinstance(node.ctx, ast.Load) and node.attr != "__init__"
    names = ("self", own, "super", "type", "cls", f"{own}.__class__")
    return loaded and ast.unparse(node.value).split("(")[0] in names


def _weights_in(*nodes: ast.AST) -> list[int]:
    return [id(n) for node in nodes for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "weight"]


def _not_read(tree: ast.AST) -> Iterator[int]:
    """Ids of nodes ``x.weight`` whose values nobody looks at: facts, comparisons, what is only written or tied."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr in _FACTS or not isinstance(node.ctx, ast.Load)):
            yield id(node.value)
            yield id(node)
        elif isinstance(node, ast.Compare):
            yield from map(id, (node.left, *node.comparators))
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            written = {ast.unparse(t).removesuffix(".data") for t in targets}
            yield from _weights_in(*targets)
            same = [n for n in ast.walk(node.value) if isinstance(n, ast.Attribute) and ast.unparse(n) in written]
            yield from map(id, same)
            if any(w.endswith(".weight") for w in written):  # two layers share one
                yield id(node.value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name.endswith("_") and not name.endswith("__"):  # writes into what it is called on, or given first
                yield from _weights_in(node.func) or _weights_in(*node.args[:1])


_CHANGING = {"append", "insert", "pop", "extend", "remove", "clear", "update"}  # of lists and dictionaries
_REGISTERING = {"setattr", "delattr", "__setattr__", "__delattr__", "add_module", "register_module", "set_submodule"}
_REGISTERING |= {"register_parameter", "register_buffer"}
_MADE = {n for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Linear | nn.modules.conv._ConvNd)}


def _changes(node: ast.AST, known: Known) -> Iterator[str]:
    """The names that ``node`` contributes to :class:`_Source`'s changes."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _REGISTERING or name in _MADE or ast.unparse(node.func).startswith(("type(", "copy.deepcopy")):
            yield "*"
        elif name in _CHANGING and isinstance(node.func, ast.Attribute):
            yield from (name for c in _chains(node.func.value, known) for name in c)
    elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        found = _chains(node, known)
        if found and (isinstance(node, ast.Subscript) or all(len(c) == 1 for c in found)):
            yield from (name for c in found for name in c)
        elif isinstance(node, ast.Attribute):
            yield "*"


@cache
def _reads(cls: type) -> tuple[tuple[str, Chain], ...]:
    """(method, attributes) for each ``self.attributes.weight`` that the forward pass of ``cls`` reads."""
    reading = _called(cls, *(root for root in _IMPLICIT if _may_read(cls, root)))
    return tuple((f.__qualname__, chain) for f in reading for chain in _source(f).reads if chain)


@cache
def merging(cls: type) -> dict[str, tuple[Chain | None, ...]]:
    """Methods of ``cls`` that read weights and change what its forward pass uses, with the weights' owners.

    The owners are as :func:`owners` takes them. The forward pass, the constructor and what these call are left out.
    """
    own = {n: f for n, (f, *_) in _methods(cls).items() if not hasattr(nn.Module, n)}
    plain = {n: f for n, f in own.items() if inspect.isfunction(inspect.getattr_static(cls, n))}
    named = [n for n, f in plain.items() if not f.__module__.startswith("torch.") and _may_read(cls, n, helpers=True)]
    if not named:
        return {}
    implicit = _called(cls, *_IMPLICIT)
    used = {"*", "forward", "__class__"}.union(*(_used(f.__code__) for f in implicit))
    implicit |= _called(cls, "__init__")
    found = {}
    for name in named:
        sources = [_source(f) for f in _reached(cls, name, lambda f: _source(f).calls, helpers=True)]
        reads = tuple(chain for source in sources for chain in source.reads)
        if plain[name] not in implicit and reads and any(not used.isdisjoint(s.changes) for s in sources):
            found[name] = reads
    return found


@cache
def computes_with_weight(cls: type, child: str) -> bool:
    """Whether the forward pass of ``cls`` reads the weight of what may be its ``child``.

    What it calls to change the module, such as merging an adapter, is left out.
    """
    steps = _reached(cls, "forward", lambda f: _source(f).calls, changing=False)
    return any(chain is None or chain[:1] == (child,) for f in steps for chain in _source(f).reads)


def repeats(module: nn.Module, method: str) -> bool:
    """Whether the module has a method of this name that calls others of the same name, as of its children."""
    cls: Any = type(module)
    return any(method in _used(f.__code__) for f in _methods(cls).get(method, [])[:1])


def owners(module: nn.Module, chains: tuple[Chain | None, ...]) -> list[nn.Module]:
    """The modules below ``module`` that ``chains`` lead to: all of them where one isn't known."""
    if None in chains:
        return list(module.modules())
    return [owner for chain in chains if chain is not None for owner in _resolve(module, chain)]


def _resolve(module: nn.Module, chain: Chain) -> list[nn.Module]:
    found = [module]
    for name in chain:
        children = [m._modules.get(name) for m in found]
        found = [c for c in children if c is not None]
        # What an index picks isn't known, so every one may be meant.
        lists = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
        found = [m for c in found for m in (c.children() if isinstance(c, lists) else [c])]
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

    def call(self, module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.inside.append(module)
        try:
            return forward(*args, **kwargs)
        finally:
            self.inside.pop()


@torch.no_grad()
def observed(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> dict[nn.Module, str]:
    """Each of ``layers`` whose weight something else reads in a call of ``model``, and the function that does.

    The model is run in eval mode; its modes, its buffers and the random state are put back.
    """
    watch = _Watch(layers)
    args, kwargs = as_call(model, example)
    try:
        with undisturbed(model), forward_through(watch.owners.values(), watch.call), watch:
            model(*args, **kwargs)
    except Exception as error:  # whatever the model raises
        error.add_note(
            f"The model was run on example_input, as {len(args)} arguments by position and {len(kwargs)} by keyword. A "
            "batch that is itself a list or a tuple goes into a tuple: example_input=(batch,)"
        )
        raise
    return watch.found
