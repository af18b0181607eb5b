"""Small networks of our studies: one for signals, and timm's ResNet for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers.create_attn import create_attn
from torch import Tensor, nn

from icnets.timm_models import create_model

__all__ = ["SignalNet", "small_resnet"]


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
