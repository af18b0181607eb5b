"""Sums behind lowered units, in the order in which ONNX Runtime gets them for nothing (ours)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from icnets.export.lowering import RANK_ONE, SCALE

__all__ = ["join_residuals"]


def join_residuals(proto: Any) -> None:
    """Rewrites ``(z + rank_one) + shortcut`` as ``z + (rank_one + shortcut)``, z through a depthwise convolution.

    ONNX Runtime computes one sum inside of a convolution, and the rectifier behind it, but not where the convolution
    has an activation already, as z's own does. So written, both sums are inside of one; as they were, the second sum
    and the rectifier are passes over memory. ``proto`` is an ONNX ModelProto, changed in place.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kernel = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "Conv"}
    sums = {node.output[0]: node for node in graph.node if _adds_rank_one(node, kernel)}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    nodes: list[Any] = []
    for node in graph.node:
        nodes.append(node)
        inner = next((n for n in node.input if n in sums and readers[n] == 1), None)
        if node.op_type != "Add" or inner is None:
            continue
        shortcut = next(n for n in node.input if n != inner)
        z, rank_one = sorted(sums[inner].input, key=lambda name: _is(RANK_ONE, kernel.get(name)))
        channels = weights[kernel[rank_one]].dims[0]
        nodes.remove(sums[inner])
        nodes[-1:] = [helper.make_node("Add", [rank_one, shortcut], [inner], sums[inner].name)]
        if not _is(SCALE, kernel.get(z)):
            rank = len(weights[kernel[rank_one]].dims)
            ones = f"{inner}.{SCALE}.weight"
            graph.initializer.append(
                numpy_helper.from_array(np.ones((channels,) + (1,) * (rank - 1), np.float32), ones)
            )
            nodes.append(helper.make_node("Conv", [z, ones], [f"{inner}.scaled"], f"{node.name}_scale", group=channels))
            z = f"{inner}.scaled"
        nodes.append(helper.make_node("Add", [z, inner], node.output, node.name))
    graph.ClearField("node")
    graph.node.extend(nodes)


def _adds_rank_one(node: Any, kernel: dict[str, str]) -> bool:
    return node.op_type == "Add" and [_is(RANK_ONE, kernel.get(name)) for name in node.input].count(True) == 1


def _is(module: str, weight: str | None) -> bool:
    return weight is not None and f".{module}." in f".{weight}"
