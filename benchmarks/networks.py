"""The networks that are measured: families of timm, and what can be made of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

from icnets import ICConfig, convert_, ic_parameters

__all__ = ["FAMILIES", "VARIANTS", "Family", "build"]

# Name in rows and on the command line: heading of its column.
VARIANTS = {
    "basic": "basic",
    "ic-all": "IC, every conv",
    "ic-auto": "IC, auto",
    "ic-kxk": "IC, k×k only",
    "se": "SE",
    "eca": "ECA",
    "deeper": "one size deeper",
}


@dataclass(frozen=True)
class Family:
    """A basic network and its relatives.

    ``name`` and ``deeper`` are timm's, the latter empty where timm has none; ``attention``: timm's blocks take SE and
    ECA modules; ``options`` and ``deeper_options`` go to ``timm.create_model``.
    """

    name: str
    deeper: str
    attention: bool = False
    image_size: int = 224
    options: Mapping[str, Any] = field(default_factory=dict)
    deeper_options: Mapping[str, Any] = field(default_factory=dict)

    def has(self, variant: str) -> bool:
        """Whether timm has what the variant is made of."""
        return bool(self.deeper) if variant == "deeper" else self.attention or variant not in ("se", "eca")


FAMILIES = {
    family.name: family
    for family in (
        Family("resnet18", "resnet34", attention=True),
        Family("resnet50", "resnet101", attention=True),
        Family("resnext50_32x4d", "resnext101_32x4d", attention=True),
        Family("mobilenetv2_100", "mobilenetv2_120d"),
        Family("densenet121", "densenet169"),
        Family("mobilenetv3_large_100", ""),
        Family("tf_efficientnet_lite0", "tf_efficientnet_lite1"),
        Family("convnext_tiny", "convnext_small"),
    )
}


def build(family: Family, variant: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, with weights, norms and collisions as random as a training leaves them.

    The same ``seed`` gives the same network: an artifact made of it earlier is still the network's.

    Raises:
        ValueError: an unknown variant, or one that timm doesn't have for this family.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    if not family.has(variant):
        raise ValueError(f"timm has no {VARIANTS[variant]} form of {family.name}; leave it out")
    name, options = (family.deeper, family.deeper_options) if variant == "deeper" else (family.name, family.options)
    attention: dict[str, Any] = {"block_args": {"attn_layer": variant}} if variant in ("se", "eca") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, **options, **attention)
        if variant.startswith("ic-"):
            convert_(model, ICConfig(layers=variant.removeprefix("ic-")), optimizers=())
        _randomise(model, family.image_size)
    return model.eval()


@torch.no_grad()
def _randomise(model: nn.Module, image_size: int) -> None:
    """timm starts the last norm of a block, and conversion every collision, at 0: shortcuts that training ends."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        last = not norm.weight.any()  # of a residual block: smaller, or depth would amplify every rounding
        norm.weight.uniform_(0.5, 1.5).mul_(0.3 if last else 1.0)
        norm.weight[::5] *= -1
        norm.bias.normal_(std=0.2)
    for _, parameter in ic_parameters(model):
        parameter.add_(0.2 * torch.randn_like(parameter))
    # Statistics that belong to these weights: without them a deep network's output overflows or dies.
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(4, 3, image_size, image_size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
