"""What stands around convolutions: norms, activations, branches that merge."""

import timm.layers
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, bias=False), FrozenBatchNorm2d(4), nn.ReLU(inplace=True))


class NormAct(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, bias=False), timm.layers.BatchNormAct2d(4))


class GroupNorm(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(inplace=True))


class InPlace(nn.Sequential):
    """What follows overwrites the unit's output before its gradient is computed."""

    shape, converted = (2, 3, 8, 8), ["0", "2"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Hardtanh(inplace=True))


class Decoder(nn.Module):
    shape, converted = (2, 3, 8, 8), ["down", "last", "up"]

    def __init__(self):
        super().__init__()
        self.down, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(7, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=2)

    def forward(self, x):
        return self.last(torch.cat([x, self.up(self.down(x), output_size=x.shape[2:])], 1))


class Merging(nn.Module):
    """Merges its branches into one convolution for inference, which would lose the collisions: refused."""

    shape, converted, refused = (2, 4, 8, 8), ["wide", "point"], ["reparameterize"]

    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.merged = None

    def forward(self, x):
        return self.wide(x) + self.point(x) if self.merged is None else self.merged(x)

    def reparameterize(self):
        merged = nn.Conv2d(4, 4, 3, padding=1)
        merged.weight.data = self.wide.weight + nn.functional.pad(self.point.weight, (1, 1, 1, 1))
        merged.bias.data = self.wide.bias + self.point.bias
        self.merged = merged


class Fusing(nn.Module):
    """Its ``fuse`` takes features together, and stays."""

    shape, converted, refused = (2, 4, 8, 8), ["a", "b"], []

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def fuse(self, a, b):
        return a + b

    def forward(self, x):
        return self.fuse(self.a(x), self.b(x))


class Nested(nn.Module):
    shape, converted = (2, 4, 8, 8), ["parts.first", "parts.rest.0"]

    def __init__(self):
        super().__init__()
        rest = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.parts = nn.ModuleDict({"first": nn.Conv2d(4, 4, 1), "rest": rest})

    def forward(self, x):
        for layer in self.parts["rest"]:
            x = layer(self.parts["first"](x))
        return x


class Wrapped(nn.Sequential):
    """A depthwise convolution with a multiplier, in channels-last memory."""

    shape, converted = (2, 4, 8, 8), ["0", "1"]

    def __init__(self):
        super().__init__(nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 4, 1))
        self.to(memory_format=torch.channels_last)


class AllDimensions(nn.Module):
    shape, converted = (2, 4, 8, 8), ["line", "volume", "up"]

    def __init__(self):
        super().__init__()
        self.line, self.volume = nn.Conv1d(4, 4, 3, padding=1), nn.Conv3d(1, 2, 2)
        self.up = nn.ConvTranspose3d(2, 1, 2)

    def forward(self, x):
        x = self.line(x.flatten(2)).view_as(x)
        return self.up(self.volume(x[:, None]))
