"""Which of several ways to compute the same is the fastest here: measured once for a shape, and remembered (ours)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from icnets.files import atomic_write, cache_folder

__all__ = ["fastest"]

_ROUNDS = 9
_known: dict[str, str] = {}
_loaded: set[Path] = set()


def fastest(what: str, ways: Mapping[str, Callable[[], Any]], device: torch.device) -> str:
    """The name of the fastest of ``ways``, which must be free to run any number of times.

    ``what`` names the operation and everything that its cost depends on. Measured in turns on a CUDA device when first
    asked, and kept in the cache folder; elsewhere, and while a CUDA graph is recorded, the first.
    """
    first = next(iter(ways))
    if device.type != "cuda":
        return first
    key = f"{torch.cuda.get_device_name(device)} / torch {torch.__version__} / {what}"
    if key not in _known:
        _load()
    if _known.get(key) not in ways:
        if torch.cuda.is_current_stream_capturing():
            return first
        _known[key] = _measure(ways)
        _store()
    return _known[key]


def _measure(ways: Mapping[str, Callable[[], Any]]) -> str:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_ROUNDS + 2):
        for name, way in ways.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            way()
            end.record()
            end.synchronize()
            if turn > 1:  # compiled, and warm
                times[name].append(start.elapsed_time(end))
    return min(times, key=lambda name: statistics.median(times[name]))


def _file() -> Path:
    return cache_folder() / "fastest.json"


def _load() -> None:
    path = _file()
    if path not in _loaded:
        _loaded.add(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(found, dict):
            _known.update({k: v for k, v in found.items() if isinstance(v, str) and k not in _known})


def _store() -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_file()) as unfinished:
            unfinished.write_text(json.dumps(dict(sorted(_known.items())), indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass  # it is measured again the next time
