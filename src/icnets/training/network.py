"""The network of a training run: a name or a module, its starting weights, and the conversion."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from icnets import checkpoint
from icnets.checkpoint.foreign import read_weights
from icnets.checkpoint.image_notes import read_notes
from icnets.convert.surgery import ICConfig, convert_, load_basic_state_dict
from icnets.support.text import first_line
from icnets.timm_models import NETWORKS, create_model
from icnets.unit.layers import IC_LAYERS

__all__ = ["build_network", "load_weights"]

_CALIBRATION_BATCHES = 4


def build_network(
    model: str | nn.Module,
    *,
    num_classes: int,
    in_chans: int,
    ic: ICConfig | None,
    pretrained: bool = False,
    init_from: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, ICConfig | None]:
    """The network to train.

    Args:
        model: a timm name, with or without ``ic_`` ("resnet18", "ic_resnet18"), or any module.
        num_classes, in_chans: for a name; a module is taken as it is.
        ic: how to convert. None: a name with ``ic_`` is converted by the defaults, anything else stays basic. Those
            defaults include the warm start "gain" where the weights are trained (``pretrained``, ``init_from``).
        pretrained: start from timm's pretrained weights.
        init_from: start from the weights of this checkpoint; see :func:`load_weights`.
        options: more of timm's arguments for a name.

    Returns:
        The network in train mode, and a configuration that still waits for data ("calibrate") or None.

    Raises:
        ValueError, TypeError: unknown network, options it doesn't take, or weights that don't fit.
    """
    if isinstance(model, str):
        if ic is None:
            ic = starting_config(model, trained=pretrained or init_from is not None)
        args: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **(options or {})}
        network = _created(model, pretrained, options or {}, args)
    else:
        if pretrained or options:
            raise ValueError("pretrained and model_options go with a network's name, but the model is a module already")
        network = model
    if init_from is not None:
        load_weights(network, init_from)
    if ic is not None and ic.warm_start == "calibrate":
        if any(isinstance(m, IC_LAYERS) for m in network.modules()):
            raise ValueError(
                f"{init_from or 'the network'} has IC units already, and only basic weights can be calibrated; "
                "leave ic.warm_start out, or start from the basic network's"
            )
        return network.train(), ic
    if ic is not None:
        convert_(network, ic, optimizers=())
    return network.train(), None


def _created(model: str, pretrained: bool, options: Mapping[str, Any], args: Mapping[str, Any]) -> nn.Module:
    try:
        return create_model(model, pretrained=pretrained, ic=None, **args)
    except Exception as error:
        if not options:
            raise
        # timm stumbles over unfitting options somewhere within, by any kind of error.
        raise ValueError(
            f"timm can't make {model} with model_options {dict(options)}: {first_line(error)}; check them"
        ) from error


def starting_config(name: str, *, trained: bool) -> ICConfig | None:
    """How a named network is converted where nothing is said: those with ``ic_``, from trained weights by "gain"."""
    if name.split(".")[0] not in NETWORKS:
        return None
    return ICConfig(warm_start="gain" if trained else "none")


def calibrate(network: nn.Module, config: ICConfig, batches: Iterable[Any] | None) -> None:
    """The conversion that waited for data; without any (weights follow from a checkpoint), only the surgery."""
    if batches is None:
        convert_(network, config.without_data(), optimizers=())
    else:
        convert_(network, config, optimizers=(), calibration_data=batches)


def calibration_batches(data: Any) -> Iterator[Tensor]:
    """What a warm start is calibrated on: images (N, C, H, W) of a data module's first validation batches.

    These are not augmented, and reading them leaves the course of the training alone.
    """
    for batch in islice(data.val_dataloader(), _CALIBRATION_BATCHES):
        yield batch[0]


def load_weights(network: nn.Module, path: Path) -> str:
    """Load trained weights into a basic network, in place.

    Args:
        network: the basic network; it becomes an IC network if the checkpoint holds one. Where the checkpoint names
            another number of classes than a network of timm's has, the last layer stays a new one.
        path: what ``icnets.save`` wrote, or a plain state dict of the basic network (.pth, .pt, .safetensors).

    Returns:
        Where in the file the weights are, "" if they are all of it; see
        :func:`icnets.checkpoint.foreign.read_weights`.

    Raises:
        ValueError: the file is missing, damaged, or doesn't fit the network.
    """
    path = Path(path)
    if written_by_icnets(path):
        with _head_of(network, read_notes(strings_of(path)).class_names):
            checkpoint.load(path, network)
        return ""
    weights = read_weights(path, network.state_dict())
    try:
        load_basic_state_dict(network, weights.state)
    except ValueError as error:
        of = f", of which {weights.origin} was read," if weights.origin else ""
        raise ValueError(f"{path}{of} doesn't fit the network: {error}") from error
    return weights.origin


@contextmanager
def _head_of(network: nn.Module, class_names: list[str] | None) -> Iterator[None]:
    """A network of timm's has a last layer for ``class_names`` within, and a new one for its own classes afterwards."""
    own, name = (
        getattr(network, "num_classes", None),
        (getattr(network, "pretrained_cfg", None) or {}).get("classifier"),
    )
    if class_names is None or len(class_names) == own or not isinstance(name, str):
        yield
        return
    head, timms = network.get_submodule(name), cast(Any, network)
    try:
        timms.reset_classifier(len(class_names))
        yield
        timms.reset_classifier(own)
    except Exception:
        network.set_submodule(name, head)
        timms.num_classes = own
        raise


def holds_ic_network(path: Path) -> bool:
    """Whether a file is a checkpoint of ours that has IC units; False if it is missing."""
    return written_by_icnets(path) and bool(checkpoint.read(path)[0]["layers"])


def written_by_icnets(path: Path) -> bool:
    """Whether a safetensors file, by whatever name, has our header; False if it is missing or too damaged to say."""
    return path.is_file() and "icnets" in strings_of(path)


def strings_of(path: Path) -> dict[str, str]:
    """The strings in a safetensors file's header; none in one too damaged to say."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            return dict(json.loads(file.read(min(length, 100_000_000))).get("__metadata__", {}))
        except (ValueError, AttributeError, TypeError, RecursionError):
            return {}
