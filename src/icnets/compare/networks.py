"""The networks of comparisons: timm's, a small one for signals, and controls with a function before each norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.create_attn import create_attn
from torch import Tensor, nn

from icnets.compare.methods import Network
from icnets.timm_models import create_model

__all__ = ["BEFORE_NORM", "OWN", "SelfCollision", "SignalNet", "create", "small_resnet"]


class SelfCollision(nn.Module):
    """``y + relu(y + b1)``: what is left of an IC unit without its collision term (w' = 0), as a control (ours).

    ``b1`` (channels,) starts at 0 and is learned. In and out: ``(N, channels, ...)``, any floating dtype.
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

    After MNIST-1D's own baseline (arXiv 2011.14439: three convolutions of 25 channels, stride 2), with norms (ours).

    Args:
        num_classes: of the output.
        in_chans: of the signal.
        channels: of every convolution.
        depth: number of convolutions; the first three have stride 2.
        attention: timm's name of an attention module behind each norm ("se", "eca", "cbam"); nothing: none.
        attention_options: its arguments.

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
    ) -> None:
        super().__init__()
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

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


def small_resnet(
    num_classes: int,
    in_chans: int = 3,
    depth: int = 18,
    channels: Sequence[int] = (16, 32, 64, 128),
    stem_stride: int = 2,
    **options: Any,
) -> nn.Module:
    """timm's ResNet for small images: its stem is one 3×3 convolution, without max-pooling, as He et al. for CIFAR.

    Args:
        num_classes: of the output.
        in_chans: of the images.
        depth: 18 or 34 for basic blocks, 50 or 101 for bottlenecks.
        channels: of the four stages, even numbers; the stem has as many as the first.
        stem_stride: of the stem: the first stage sees the image made smaller by so much.
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
    return model


OWN: dict[str, Callable[..., nn.Module]] = {"signal_net": SignalNet, "small_resnet": small_resnet}


def create(network: Network, *, num_classes: int, in_chans: int) -> nn.Module:
    """The network with random weights, not converted.

    Raises:
        ValueError: neither timm nor we know its name, or ``before_norm``.
        TypeError: options that it doesn't take.
    """
    options = {"num_classes": num_classes, "in_chans": in_chans, **network.options}
    build = OWN.get(network.name, partial(create_model, network.name, ic=None))
    model = build(**options)
    if network.before_norm is not None:
        put_before_norm_(model, network.before_norm)
    return model


def put_before_norm_(model: nn.Module, kind: str) -> None:
    """Puts a function of :data:`BEFORE_NORM` behind every convolution of ``model``, in place."""
    if kind not in BEFORE_NORM:
        raise ValueError(f"before_norm is {kind!r}; it must be one of {', '.join(BEFORE_NORM)}")
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, convolutions)]
    for name, module in found:
        model.set_submodule(name, nn.Sequential(module, BEFORE_NORM[kind](module.out_channels)))
