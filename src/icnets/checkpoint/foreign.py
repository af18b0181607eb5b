"""Files of weights that others wrote: what a file is, by its content, and the state dict in it. No pickle is run."""

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from icnets.convert.state_dicts import plain_name
from icnets.support.text import few, first_line

# Where trainers keep weights in a checkpoint, those that timm would take first: averages.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_ENTRIES = (*_AVERAGES, "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights")

_PICKLE = (
    "is a pickle of torch.save, not a checkpoint of icnets.save; icnets convert makes one of it, "
    "load_basic_state_dict takes its state dict"
)
_NO_WEIGHTS = (
    "isn't a file of weights, but perhaps a web page, a pointer of Git LFS or an archive; fetch or unpack the file "
    "itself, .pth or .safetensors"
)
_ALONE = "write the one alone: torch.save(state_dict, 'weights.pth')"


class Weights(NamedTuple):
    """A state dict on the CPU; ``origin`` says where in the file it stands, "" where it is all of it."""

    state: dict[str, Tensor]
    origin: str


# -- what a file is --------------------------------------------------------------------------------------------------


def foreign(path: Path) -> str:
    """Says what a file is that isn't safetensors, with the remedy: "is empty; ...". It is "" where nobody can say."""
    if path.is_dir():
        return "is a folder; give the file of weights in it"
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
        if any(name.startswith("code/") for name in names):
            call = f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
            return f"is a TorchScript archive; if you trust it, write its weights alone: {call}"
        return _PICKLE if "data.pkl" in names else _NO_WEIGHTS
    if head.startswith(b"\x80"):  # of torch before 1.6
        return _PICKLE
    if not head or head.startswith(b"PK"):
        return f"is {'cut off' if head else 'empty'}; fetch or write it again"
    return "" if head[8:9] == b"{" else _NO_WEIGHTS  # of safetensors, behind the header's size


# -- pickles ---------------------------------------------------------------------------------------------------------


def unpickled(path: Path) -> Any:
    """Reads a file of torch.save, of which only plain data. Raises ValueError for anything else."""
    try:
        if zipfile.is_zipfile(path):  # torch itself doesn't look at the checksums
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged}")
        with open(path, "rb") as file:  # of a path, newer versions of torch look at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if objects := foreign_objects(path, str(error)):
            network = any(name.startswith("torch.nn.modules") for name in objects)
            kind, entry = ("a whole network", ".state_dict()") if network else ("objects", "['state_dict']")
            what = f"{path} holds {kind} ({few(objects)}), not only weights, and a pickle can run any code"
            call = f"torch.save(torch.load({path.name!r}, weights_only=False){entry}, 'weights.pth')"
            raise ValueError(f"{what}; if you trust it, write its weights alone: {call}") from error
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    why = f"{type(error).__name__}: {first_line(error)}"
    return f"{path} is damaged, or no file of weights ({why}); fetch or write it again"


def foreign_objects(path: Path, message: str) -> list[str]:
    """Names what a pickle needs beyond tensors and plain data, torch's modules last.

    ``message`` is what torch says of it; of a format before 1.6 it names the first object only.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        before = r"(?:GLOBAL|Unsupported class|Trying to instantiate(?: unsupported)? \w*)"
        names = re.findall(before + r" ([\w.]+\.\w+)", message)
    return sorted(dict.fromkeys(names), key=lambda name: (name.startswith("torch.nn"), name))


# -- the state dict --------------------------------------------------------------------------------------------------


def _states(content: Any, origin: str = "") -> dict[str, Mapping[str, Any]]:
    """The state dicts in a checkpoint by their place, ``['model']``; not an optimizer's, whose keys are numbers."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in content.items():
        found |= _states(value, f"{origin}[{key!r}]")
    return found or ({origin: content} if any(isinstance(v, Tensor) for v in content.values()) else {})


def _chosen(path: Path, content: Any) -> tuple[str, Mapping[str, Any]]:
    states = _states(content)
    places = [[origin for origin in states if origin.startswith(f"[{entry!r}]")] for entry in _ENTRIES]
    states = {origin: states[origin] for origin in next(filter(None, places), states)}
    if len(states) == 1:
        return next(iter(states.items()))
    there = few(list(map(str, content))) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    there = there or "an empty mapping"
    what = f"several state dicts ({few(list(states))})" if states else f"no state dict, but {there}"
    raise ValueError(f"{path} holds {what}; {_ALONE}")


def _prefix(path: Path, state: Mapping[str, Tensor], wanted: Collection[str]) -> str:
    """What stands in front of all keys ``wanted`` in ``state``; "" where nothing does, or where it isn't known."""
    first = min(wanted, key=len, default="")
    if first in state or not first:
        return "module." if state and all(key.startswith("module.") for key in state) else ""
    candidates = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    found = sorted(p for p in candidates if all(p + key in state for key in wanted))
    if len(found) > 1:
        raise ValueError(f"{path} holds the network {len(found)} times, under {few(found)}; {_ALONE}")
    return found[0] if found else ""


def read_weights(path: Path, wanted: Collection[str] = ()) -> Weights:
    """Reads the weights of a .pth, .pt, .ckpt or .safetensors file of icnets, timm's, Lightning's and others' trainers.

    Args:
        path: the file; its content decides what it is, not its name.
        wanted: keys of the network's state dict, by which a prefix (``module.``, ``network.``, ``model.``) is found.

    Raises:
        ValueError: the file is missing, damaged, something else, or holds more than plain data; with the remedy.
    """
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}; check the path")
    if (what := foreign(path)) not in ("", _PICKLE):
        raise ValueError(f"{path} {what}")
    try:
        content = unpickled(path) if what else load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(_damaged(path, error)) from error
    origin, found = _chosen(path, content)
    state = {plain_name(key): v for key, v in found.items() if isinstance(v, Tensor) or key.endswith("_extra_state")}
    if prefix := _prefix(path, state, wanted):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        origin += f"{' and ' if origin else ''}keys without {prefix!r}"
    return Weights(state, origin)
