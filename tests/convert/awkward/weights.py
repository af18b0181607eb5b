"""Convolutions whose weight isn't simply their Parameter."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def standardised(weight):
    flat = weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
    return flat.view_as(weight)


class Standardised(nn.Conv2d):
    shape, converted = (2, 3, 8, 8), [""]

    def __init__(self):
        super().__init__(3, 4, 3, 2, 1)

    def forward(self, x):
        return self._conv_forward(x, standardised(self.weight), self.bias)


class StandardisedWithGain(nn.Conv2d):
    """Its parameter is called as one of the unit's."""

    shape, converted = (2, 4, 8, 8), [""]

    def __init__(self):
        super().__init__(4, 6, 3, padding=1, groups=2)
        self.gain = nn.Parameter(torch.full((6, 1, 1, 1), 0.5))

    def forward(self, x):
        return F.conv2d(x, standardised(self.weight) * self.gain, self.bias, padding=1, groups=2)


class Equalised(nn.Conv2d):
    shape, converted = (2, 3, 8, 8), [""]

    def __init__(self):
        super().__init__(3, 4, 3, bias=False)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight * self.scale)


class Normed(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0", "2"]

    def __init__(self):
        convs = [parametrizations.weight_norm(nn.Conv2d(c, 4, 3, padding=1)) for c in (3, 4)]
        super().__init__(convs[0], nn.ReLU(inplace=True), convs[1])


class Spectral(nn.Sequential):
    shape, converted = (2, 3, 8), ["0", "1"]

    def __init__(self):
        down, up = nn.Conv1d(3, 4, 4, 2, 1), nn.ConvTranspose1d(4, 3, 4, 2, 1)
        super().__init__(parametrizations.spectral_norm(down), parametrizations.spectral_norm(up))


class _Positive(nn.Module):
    def forward(self, weight):
        return F.softplus(weight)


class Positive(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0"]

    def __init__(self):
        conv = nn.Conv2d(3, 4, 3)
        parametrize.register_parametrization(conv, "weight", _Positive())
        super().__init__(conv)


class ParametrisedAndPadding(nn.Sequential):
    """Both at once: a weight that is computed, in a layer whose forward pass is its own."""

    shape, converted = (2, 3, 8, 8), ["0"]

    def __init__(self):
        class Padding(nn.Conv2d):
            def forward(self, x):
                return F.conv2d(F.pad(x, (2, 0, 2, 0)), self.weight, self.bias)

        conv = Padding(3, 4, 3)
        parametrize.register_parametrization(conv, "weight", _Positive())
        super().__init__(conv)


class Pruned(nn.Sequential):
    """Its weight is made by a hook before each call, as by torch's older weight and spectral norms."""

    shape, converted, copies = (2, 3, 8, 8), ["0"], False

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3))
        prune.l1_unstructured(self[0], "weight", amount=0.5)


class Masked(nn.Conv2d):
    """PixelCNN's: the sum of the inputs would see what the mask hides."""

    shape, skipped = (2, 3, 8, 8), {"": "it masks its weight, but a collision sees every input"}

    def __init__(self):
        super().__init__(3, 4, 3, padding=1)
        mask = torch.ones(1, 1, 3, 3)
        mask[..., 1, 1:] = mask[..., 2, :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class Frozen(nn.Sequential):
    shape, converted = (2, 3, 8, 8), ["0", "1"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        self[0].requires_grad_(False)


class Tied(nn.Module):
    """Two convolutions with one weight: each has collisions of its own."""

    shape, converted = (2, 4, 8, 8), ["a", "b"]

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Imagined(nn.Module):
    shape, skipped = (2, 3, 8, 8), {"conv": "complex weight"}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, dtype=torch.complex64)

    def forward(self, x):
        return torch.view_as_real(self.conv(x.to(torch.complex64)))


class Marked(nn.Sequential):
    """Someone has put an attribute on the layer that the unit has as well."""

    shape, converted = (2, 3, 8, 8), ["0"]
    skipped = {"1": "Conv2d has attributes of its own that an IC unit has too (fan_in)"}

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        self[0].gain = 2.0
        self[1].fan_in = 7
