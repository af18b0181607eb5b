"""Ways to damage a file: its bytes, two files at a time, and the structure of a YAML configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

__all__ = ["BYTES", "STRUCTURE", "Damage"]

Damage = Callable[[np.random.Generator, bytes], tuple[bytes, str]]  # -> what is left, and what was done in words

_EDGE = 512  # half of all places are so near an end of the file, where formats keep their headers


def _place(rng: np.random.Generator, length: int) -> int:
    """A place in a file of ``length`` bytes, at least 1."""
    near = min(_EDGE, length)
    return int(
        (rng.integers(length), rng.integers(length), rng.integers(near), length - 1 - rng.integers(near))[
            int(rng.integers(4))
        ]
    )


def _truncate(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    place = _place(rng, len(content))
    return content[:place], f"cut to {place} of {len(content)} bytes"


def _flip(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    changed = bytearray(content)
    bits = [(_place(rng, len(content)), int(rng.integers(8))) for _ in range(int(rng.choice([1, 1, 1, 8])))]
    for place, bit in bits:
        changed[place] ^= 1 << bit
    return bytes(changed), f"flipped (byte, bit) {', '.join(map(str, bits))}"


def _zero(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    start, size = _place(rng, len(content)), int(2 ** rng.integers(0, 12))
    end = min(start + size, len(content))
    return content[:start] + bytes(end - start) + content[end:], f"zeros from byte {start} to {end}"


def _swap(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    a, b = sorted((_place(rng, len(content)), _place(rng, len(content))))
    size = min(int(2 ** rng.integers(0, 10)), b - a, len(content) - b)
    first, second = content[a : a + size], content[b : b + size]
    changed = content[:a] + second + content[a + size : b] + first + content[b + size :]
    return changed, f"swapped {size} bytes at {a} and {b}"


def _empty(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    return b"", "emptied"


BYTES: dict[str, Damage] = {"truncate": _truncate, "flip": _flip, "zero": _zero, "swap": _swap, "empty": _empty}


# Of YAML.


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a tree of dicts and lists."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    return [node for key, value in items for node in [(tree, key), *_nodes(value)]]


_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e400, float("nan"), 10**30, 10**9, "", "\x07", "x" * 5000, "none", [], [[]], {}, {"a": 1},
    {"class_path": "os.system"}, {"class_path": "torch.nn.ReLU"}, {1: 2}, "../../etc", b"bytes", [1, "a", None],
)  # fmt: skip


def _dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode()


def _replace(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    tree = yaml.safe_load(content)
    nodes = _nodes(tree)
    parent, key = nodes[int(rng.integers(len(nodes)))]
    parent[key] = value = _VALUES[int(rng.integers(len(_VALUES)))]
    return _dumped(tree), f"{key} is {value!r}"[:80]


def _drop(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    tree = yaml.safe_load(content)
    nodes = _nodes(tree)
    parent, key = nodes[int(rng.integers(len(nodes)))]
    del parent[key]
    return _dumped(tree), f"dropped {key}"


def _rename(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    tree = yaml.safe_load(content)
    nodes = [(parent, key) for parent, key in _nodes(tree) if isinstance(parent, dict)]
    parent, key = nodes[int(rng.integers(len(nodes)))]
    new: Any = (f"{key}s", "", 7, None, f"{key}.{key}", "__class__")[int(rng.integers(6))]
    parent[new] = parent.pop(key)
    return _dumped(tree), f"{key} is called {new!r}"


def _line(rng: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    lines = content.decode().splitlines()
    i = int(rng.integers(len(lines)))
    ways = {
        "repeated": [lines[i], lines[i]],
        "indented": [f" {lines[i]}"],
        "behind a tab": [f"\t{lines[i]}"],
        "a comment": [f"# {lines[i]}"],
        "behind a comment": ["# a comment", lines[i]],
        "an alias": [f"{lines[i].partition(':')[0]}: *nothing"],
        "a Python object": [f"{lines[i].partition(':')[0]}: !!python/object/apply:os.getcwd []"],
        "nested 2,000 deep": [f"{lines[i].partition(':')[0]}: {'[' * 2000}{']' * 2000}"],
        "a second document": ["---", lines[i]],
        "before a byte of no text": [lines[i], "\x00"],
    }
    way = list(ways)[int(rng.integers(len(ways)))]
    return "\n".join([*lines[:i], *ways[way], *lines[i + 1 :], ""]).encode(), f"line {i + 1} {way}"


STRUCTURE: dict[str, Damage] = {"replace": _replace, "drop": _drop, "rename": _rename, "line": _line}
