"""Sums behind lowered units, in the order in which ONNX Runtime gets the last for nothing (ours)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from icnets.deploy.export.lowering import RANK_ONE

__all__ = ["join_residuals"]


def join_residuals(proto: Any) -> None:
    """Rewrites ``(z + rank_one) + shortcut`` as ``(z + shortcut) + rank_one``.

    ONNX Runtime computes a sum inside of a convolution, and the rectifier behind it, but not where the convolution has
    an activation already, as z's own does. As it was, the rectifier behind the block was a pass over memory; now both
    are inside of the rank-one convolution. ``proto`` is an ONNX ModelProto, changed in place.
    """
    graph = proto.graph
    kernel = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "Conv"}
    rank_one = {name for name, weight in kernel.items() if f".{RANK_ONE}." in f".{weight}"}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    adds = [node for node in graph.node if node.op_type == "Add"]
    inner = {node.output[0]: node for node in adds if len(rank_one.intersection(node.input)) == 1}
    late = []
    for outer in adds:
        name = next((name for name in outer.input if name in inner and readers[name] == 1), None)
        if name is None:
            continue
        first = inner[name]
        (z,) = set(first.input) - rank_one
        (shortcut,) = set(outer.input) - {name}
        outer.input[:] = [name, *rank_one.intersection(first.input)]
        first.input[:] = [z, shortcut]
        late.append(first)
    _behind_their_inputs(graph, late)


def _behind_their_inputs(graph: Any, late: list[Any]) -> None:
    """Moves the nodes ``late`` to what reads them: what they read now may be made later than they stood."""
    moved = {node.output[0]: node for node in late}
    nodes = []
    for node in graph.node:
        if node.output[0] not in moved:
            nodes += [moved[name] for name in node.input if name in moved]
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
