"""IC networks under timm's names: importing this module registers ``ic_resnet50`` and its kin with timm.

    import icnets.timm_models
    import timm

    model = timm.create_model("ic_resnet50", num_classes=10)

In timm's own scripts: ``--device-modules icnets.timm_models``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_arch_pretrained_cfgs, model_entrypoint, register_model
from torch import nn

from icnets.checkpoint.architectures import remember_architecture
from icnets.convert.surgery import ICConfig, convert_

__all__ = ["create_model"]

# timm's CNN families that are downloaded most, and of each the networks that get an IC version: ic_ and timm's name. A
# word here makes a network; nothing else knows their names.
FAMILIES = {
    "ResNet": "resnet18 resnet18d resnet26d resnet34 resnet50 resnet50d resnet101 resnet101d resnet152",
    "ResNeXt": "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
    "Wide ResNet": "wide_resnet50_2 wide_resnet101_2",
    "SE-ResNet": "seresnet50 seresnext50_32x4d seresnext101_32x8d",
    "ECA-ResNet": "ecaresnet26t ecaresnet50t ecaresnet101d",
    "Res2Net": "res2net50_26w_4s res2net101_26w_4s",
    "ResNeSt": "resnest26d resnest50d resnest101e",
    "ResNet-RS": "resnetrs50 resnetrs101",
    "ResNetV2, BiT": "resnetv2_50 resnetv2_50x1_bit resnetv2_101x1_bit",
    "NFNet": "nf_resnet50 nfnet_l0 eca_nfnet_l0 dm_nfnet_f0",
    "DenseNet": "densenet121 densenet161 densenet169 densenet201",
    "VGG": "vgg11_bn vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    "Inception": "inception_v3 inception_v4 inception_resnet_v2",
    "Xception": "xception41 xception65 xception71",
    "MobileNetV2": "mobilenetv2_050 mobilenetv2_100 mobilenetv2_140",
    "MobileNetV3": "mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv3_large_100 tf_mobilenetv3_large_100",
    "MobileNetV4": "mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_conv_large mobilenetv4_hybrid_medium",
    "EfficientNet": "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_lite0",
    "EfficientNet, TensorFlow's": "tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_b2 tf_efficientnet_b3",
    "EfficientNetV2": "tf_efficientnetv2_b0 tf_efficientnetv2_s efficientnetv2_rw_t efficientnetv2_rw_s",
    "MnasNet, FBNet, MixNet": "mnasnet_100 semnasnet_100 fbnetc_100 mixnet_s mixnet_m",
    "RegNet": "regnetx_002 regnetx_032 regnety_002 regnety_004 regnety_016 regnety_032 regnety_080",
    "RexNet": "rexnet_100 rexnet_150",
    "GhostNet": "ghostnet_100 ghostnetv2_100",
    "LCNet, TinyNet, HardCoRe-NAS": "lcnet_050 lcnet_100 tinynet_a tinynet_e hardcorenas_a",
    "CSPNet": "cspresnet50 cspdarknet53 cs3darknet_m",
    "DLA, DPN, HRNet, VoVNet": "dla34 dla60 dpn68 dpn92 hrnet_w18 hrnet_w32 ese_vovnet19b_dw ese_vovnet39b",
    "HGNet": "hgnetv2_b0 hgnetv2_b4",
    "SelecSLS, TResNet": "selecsls42b tresnet_m",
    "ConvNeXt": "convnext_atto convnext_nano convnext_tiny convnext_small convnext_base",
    "ConvNeXt V2": "convnextv2_atto convnextv2_nano convnextv2_tiny convnextv2_base",
    "RepVGG, MobileOne": "repvgg_a0 repvgg_b0 mobileone_s0 mobileone_s1",
    "FastViT, RepViT": "fastvit_t8 fastvit_sa12 repvit_m0_9 repvit_m1_1",
    "InceptionNeXt, FasterNet, StarNet": "inception_next_tiny fasternet_t0 starnet_s1",
}
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
        how = f"--model.model {basic} --model.ic.layers all in icnets fit, icnets.create_model({basic!r}) in Python"
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
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    if ic is not None:
        convert_(model, _used(ic, pretrained), optimizers=())
    _remember(model, name, kwargs)
    return model


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
