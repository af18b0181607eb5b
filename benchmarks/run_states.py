"""What two finished runs of ``icnets fit`` differ in, bit for bit."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from icnets.training.run_checkpoints import last_checkpoints, read_checkpoint

__all__ = ["differences"]

_CLOCKS = ("seconds", "seconds_to_target")  # what no two runs have in common
_NOT_LOADED = ("current_score",)  # Lightning saves the score of its last save, but neither loads nor uses it
_LEFT_OUT = ("loops",)  # Lightning's counters of batches begun, which a killed process began in vain


def differences(a: Path, b: Path) -> list[str]:
    """Names of what differs between two runs' folders: files, weights, states of optimizer, average and all else."""
    found = list(_compare("files", _files(a), _files(b)))
    found += _compare("best", *(load_file(run / "checkpoints" / "best.safetensors") for run in (a, b)))
    found += _compare("checkpoint", *(_checkpoint(run) for run in (a, b)))
    found += _compare("history", *(_history(run) for run in (a, b)))
    return found


def _files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def _checkpoint(run: Path) -> dict[str, Any]:
    content = read_checkpoint(last_checkpoints(run / "checkpoints")[0])
    return {key: value for key, value in content.items() if key not in _LEFT_OUT}


def _history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _compare(name: str, a: Any, b: Any) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and len(a) == len(b):
        for (key, x), (other, y) in zip(a.items(), b.items(), strict=True):
            if key != other and not _is_path(key):
                yield f"{name}.{key} / {other}"
            elif key not in _CLOCKS and key not in _NOT_LOADED:
                yield from _compare(f"{name}.{key}", x, y)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _compare(f"{name}.{i}", x, y)
    elif not _equal(a, b):
        yield name


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b) or (_is_path(a) and Path(a).name == Path(b).name)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "/checkpoints" in value
