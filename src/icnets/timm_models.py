"""IC networks under timm's names: importing this module registers ``ic_resnet50`` and its kin with timm.

    import icnets.timm_models
    import timm

    model = timm.create_model("ic_resnet50", num_classes=10)

In timm's own scripts: ``--device-modules icnets.timm_models``.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_arch_pretrained_cfgs, model_entrypoint, register_model
from torch import nn

from icnets.checkpoint.architectures import remember_architecture
from icnets.convert.config import ICConfig
from icnets.convert.surgery import convert_

__all__ = ["create_model"]

# timm's CNN families that are downloaded most, and of each the networks that get an IC version: ic_ and timm's name. A
# word in the file makes a network; nothing else knows their names.
_FILE = Path(__file__).with_name("timm_families.txt")
FAMILIES = dict(line.split(": ") for line in _FILE.read_text(encoding="utf-8").splitlines())
NETWORKS = {f"ic_{name}": name for names in FAMILIES.values() for name in names.split()}

_DEFAULT = ICConfig()


def _used(ic: ICConfig, pretrained: bool) -> ICConfig:
    # Pretrained weights are worth nothing unless their function is kept, so "not said" means "gain" for them.
    return replace(ic, warm_start="gain") if pretrained and ic is _DEFAULT else ic


def _unknown(name: str) -> str:
    if ":" in name:
        return f"{name} is no name of timm's; icnets.hub.from_pretrained opens what icnets saved there"
    stem, _, _ = name.partition(".")
    basic = name.removeprefix("ic_")
    if basic != name and timm.is_model(stem.removeprefix("ic_")):
        how = (
            f"--model.model {basic} --model.ic.warm_start gain in icnets fit, icnets.create_model({basic!r}) in Python"
        )
        return f"{basic} has no ic_ name of its own; convert it by its name: {how}"
    near = ", ".join(get_close_matches(stem, timm.list_models(), n=3))
    hint = f"near it: {near}" if near else "timm.list_models() lists its names"
    return f"timm {timm.__version__} has no network {name!r}; {hint}"


def create_model(name: str, *, pretrained: bool = False, ic: ICConfig | None = _DEFAULT, **kwargs: Any) -> nn.Module:
    """Builds any timm network and converts it to an IC network.

    Args:
        name: any name timm knows, with or without a tag ("resnet50", "resnet50.a1_in1k"), or a registered ``ic_`` name.
        pretrained: load the basic network's pretrained weights; unless ``ic`` is given, the IC network then starts
            from exactly their function (warm start "gain").
        ic: how to convert; None gives the basic network, which ``icnets.save`` can store all the same.
        **kwargs: as for ``timm.create_model``: num_classes, in_chans, features_only, ...

    Returns:
        The network; :func:`icnets.load` can rebuild it from its checkpoint.

    Raises:
        ValueError: timm has no network of that name.
        TypeError: for what the network's constructor doesn't take.

    Example:
        >>> model = create_model("lcnet_050", num_classes=4)
        >>> type(model.conv_stem).__name__
        'ICConv2d'
    """
    basic = NETWORKS.get(name.split(".")[0])
    if basic is not None:
        name = ".".join([basic, *name.split(".")[1:]])
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(_unknown(name))
    with _no_waiting_for_hub() if pretrained else nullcontext():
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    if ic is not None:
        convert_(model, _used(ic, pretrained), optimizers=())
    _remember(model, name, kwargs)
    return model


@contextmanager
def _no_waiting_for_hub() -> Iterator[None]:
    """Within, the hub's client looks into its cache only, where the hub doesn't answer: it would try for a minute."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # of whichever library makes its connections
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# Arguments that say where weights come from or where they go, not what the network is.
_SOURCES = {"pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir", "checkpoint_path"}
_SOURCES |= {"device", "dtype"}


def _remember(model: nn.Module, name: str, kwargs: dict[str, Any]) -> None:
    """Leaves with the model what rebuilds it, as far as that is plain data; otherwise ``load`` asks for a model."""
    args = {k: v for k, v in kwargs.items() if k not in _SOURCES and v is not None}
    try:
        json.dumps(args)
    except TypeError:
        return
    remember_architecture(model, "timm.create_model", {"model_name": name.split(".")[0], **args})


def _entrypoint(name: str, basic: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, ic: ICConfig | Mapping[str, Any] = _DEFAULT, **kwargs: Any) -> nn.Module:
        config = ic if isinstance(ic, ICConfig) else ICConfig(**ic)
        model: Any = model_entrypoint(basic)(pretrained=pretrained, **kwargs)
        convert_(model, _used(config, pretrained), optimizers=())
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": name}
        _remember(model, basic, kwargs)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"timm's {basic} with IC units (arXiv 2102.03495); ``ic``, an ICConfig or its fields, sets how."
    return build


default_cfgs: dict[str, Any] = {}


def _register() -> None:
    for name, basic in NETWORKS.items():
        cfgs = get_arch_pretrained_cfgs(basic)
        default_cfgs.update(generate_default_cfgs({key.replace(basic, name, 1): cfg for key, cfg in cfgs.items()}))
        globals()[name] = register_model(_entrypoint(name, basic))


_register()
