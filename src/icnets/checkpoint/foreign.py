"""Files of weights that others wrote: what a file is, by its content, and the state dict in it. No pickle is run."""

import re
import tarfile
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

# Where trainers keep weights in a checkpoint, those that timm would take first.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
_ENTRIES = (*_AVERAGES, "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights")

_PICKLE = (
    "is a pickle of torch.save, not a checkpoint of icnets.save; icnets convert makes one of it, "
    "load_basic_state_dict takes its state dict"
)
# By how a file begins, what it is, with the remedy.
_KINDS = (
    (rb"\Z", "is empty; fetch or write it again"),
    (rb"\x80", _PICKLE),  # of torch before 1.6
    (rb"PK", "is cut off; fetch or write it again"),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file itself; fetch that by git lfs pull"),
    (rb"\x1f\x8b", "is compressed (gzip); unpack it first"),
    (rb"\x89HDF", "is HDF5, as Keras writes it; give weights of PyTorch"),
    (rb"\x93NUMPY", "is a NumPy array; give weights of PyTorch"),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page, as when a download went wrong; fetch the file itself"),
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
        if "data.pkl" not in names:
            return "is a zip archive without weights; unpack it"
        if not any(name.startswith("code/") for name in names):
            return _PICKLE
        call = f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
        return f"is a TorchScript archive; if you trust it, write its weights alone: {call}"
    if head[8:9] != b"{" and tarfile.is_tarfile(path):
        return _resave("is a tar archive, perhaps of torch.save before 0.1.10", path, "")
    return next((what for begins, what in _KINDS if re.match(begins, head, re.IGNORECASE)), "")


def _resave(what: str, path: Path, entry: str) -> str:
    call = f"torch.save(torch.load({path.name!r}, weights_only=False){entry}, 'weights.pth')"
    return f"{what}, and a pickle can run any code; if you trust it, write its weights alone: {call}"


# -- pickles ---------------------------------------------------------------------------------------------------------


def unpickled(path: Path, map_location: Any = "cpu") -> Any:
    """Reads a file of torch.save, of which only plain data. Raises ValueError for anything else."""
    try:
        if zipfile.is_zipfile(path):  # torch itself doesn't look at the checksums
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {damaged}")
        with open(path, "rb") as file:  # of a path, newer versions of torch look at the suffix
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:
        if objects := foreign_objects(path, str(error)):
            network = any(name.startswith("torch.nn.modules") for name in objects)
            what = f"holds {'a whole network' if network else 'objects'} ({few(objects)}), not only weights"
            entry = ".state_dict()" if network else "['state_dict']"
            raise ValueError(f"{path} {_resave(what, path, entry)}") from error
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
        names = re.findall(
            r"(?:GLOBAL|Unsupported class|Trying to instantiate(?: unsupported)? \w*) ([\w.]+\.\w+)", message
        )
    return sorted(dict.fromkeys(names), key=lambda name: (name.startswith("torch.nn"), name))


# -- the state dict --------------------------------------------------------------------------------------------------


def _states(content: Any, origin: str = "") -> dict[str, Mapping[str, Any]]:
    """The state dicts in a checkpoint by their place, ``['model']``; not an optimizer's, whose keys are numbers."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in content.items():
        found |= _states(value, f"{origin}[{key!r}]") if isinstance(value, Mapping) else {}
    return found or ({origin: content} if any(isinstance(v, Tensor) for v in content.values()) else {})


def _chosen(path: Path, content: Any) -> tuple[str, Mapping[str, Any]]:
    states = _states(content)
    for entry in _ENTRIES:
        inside = {origin: state for origin, state in states.items() if origin.startswith(f"[{entry!r}]")}
        states = inside or states
        if inside:
            break
    if len(states) == 1:
        return next(iter(states.items()))
    there = list(map(str, content)) if isinstance(content, Mapping) else [f"a {type(content).__name__}"]
    there = there or ["an empty mapping"]
    what = f"several state dicts ({few(list(states))})" if states else f"no state dict, but {few(there)}"
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
        with open(path, "rb") as file:
            begun = file.read(9).endswith(b"{")  # behind the header's size
        what = _damaged(path, error) if begun else f"{path} is no file of weights; give .pth or .safetensors"
        raise ValueError(what) from error
    origin, found = _chosen(path, content)
    state = {plain_name(key): v for key, v in found.items() if isinstance(v, Tensor) or key.endswith("_extra_state")}
    if prefix := _prefix(path, state, wanted):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        origin += f"{' and ' if origin else ''}keys without {prefix!r}"
    return Weights(state, origin)
