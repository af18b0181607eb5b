"""IC networks under timm's names: importing this module registers ``ic_resnet50`` and its kin with timm.

    import icnets.timm_models
    import timm

    model = timm.create_model("ic_resnet50", num_classes=10)

In timm's own scripts: ``--device-modules icnets.timm_models``.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_arch_pretrained_cfgs, model_entrypoint, register_model
from torch import nn

from icnets.checkpoint import remember_architecture
from icnets.convert import ICConfig, convert_

__all__ = ["create_model"]

# Registered name: timm's basic network. One line here makes a network; nothing else knows their names.
NETWORKS = {
    "ic_resnet18": "resnet18",
    "ic_resnet34": "resnet34",
    "ic_resnet50": "resnet50",
    "ic_resnet101": "resnet101",
    "ic_resnet152": "resnet152",
    "ic_resnext50_32x4d": "resnext50_32x4d",
    "ic_wide_resnet50_2": "wide_resnet50_2",
    "ic_seresnet50": "seresnet50",
    "ic_densenet121": "densenet121",
    "ic_vgg16_bn": "vgg16_bn",
    "ic_mobilenetv2_100": "mobilenetv2_100",
    "ic_efficientnet_b0": "efficientnet_b0",
    "ic_convnext_tiny": "convnext_tiny",
}

_DEFAULT = ICConfig()


def _convert(model: nn.Module, ic: ICConfig, pretrained: bool) -> None:
    # Pretrained weights are worth nothing unless their function is kept, so "not said" means "gain" for them.
    convert_(model, replace(ic, warm_start="gain") if pretrained and ic is _DEFAULT else ic, optimizers=())


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
    """
    basic = NETWORKS.get(name.split(".")[0])
    if basic is not None:
        name = ".".join([basic, *name.split(".")[1:]])
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        near = ", ".join(get_close_matches(name.split(".")[0], timm.list_models(), n=3)) or "see timm.list_models()"
        raise ValueError(f"timm {timm.__version__} has no network {name!r}; near it: {near}")
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    if ic is not None:
        _convert(model, ic, pretrained)
    _remember(model, name, kwargs)
    return model


def _remember(model: nn.Module, name: str, kwargs: dict[str, Any]) -> None:
    """Leaves with the model what rebuilds it, as far as that is plain data; otherwise ``load`` asks for a model."""
    sources = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path", "device", "dtype")
    args = {k: v for k, v in kwargs.items() if k not in sources and v is not None}
    try:
        json.dumps(args)
    except TypeError:
        return
    remember_architecture(model, "timm.create_model", {"model_name": name.split(".")[0], **args})


def _entrypoint(name: str, basic: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, ic: ICConfig = _DEFAULT, **kwargs: Any) -> nn.Module:
        model: nn.Module = model_entrypoint(basic)(pretrained=pretrained, **kwargs)
        _convert(model, ic, pretrained)
        for cfg in ("pretrained_cfg", "default_cfg"):
            if isinstance(getattr(model, cfg, None), dict):
                setattr(model, cfg, {**getattr(model, cfg), "architecture": name})
        _remember(model, basic, kwargs)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"timm's {basic} with IC units for convolutions (arXiv 2102.03495); ``ic`` sets how."
    return build


default_cfgs: dict[str, Any] = {}


def _register() -> None:
    for name, basic in NETWORKS.items():
        cfgs = get_arch_pretrained_cfgs(basic)
        default_cfgs.update(generate_default_cfgs({key.replace(basic, name, 1): cfg for key, cfg in cfgs.items()}))
        globals()[name] = register_model(_entrypoint(name, basic))


_register()
