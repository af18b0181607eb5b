"""Convolutions that are called in unusual ways, or not at all."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d


def conv():
    return nn.Conv2d(4, 4, 3, padding=1)


class Raw(nn.Module):
    shape = (2, 4, 8, 8)
    converted, skipped = ["other"], {"conv": "Raw.forward reads its weight without calling it"}

    def __init__(self):
        super().__init__()
        self.conv, self.other = conv(), conv()

    def forward(self, x):
        return self.other(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))


class RawInMethod(nn.Module):
    shape, skipped = (2, 4, 8, 8), {"conv": "RawInMethod._attend reads its weight without calling it"}

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def _attend(self, x):
        return F.conv2d(x, self.conv.weight[:2], self.conv.bias[:2], padding=1)

    def forward(self, x):
        return self._attend(x)


class RawByName(nn.Module):
    shape, skipped = (2, 4, 8, 8), {"conv": "RawByName.forward reads its weight without calling it"}

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        layer = self.conv
        return F.conv2d(x, layer.weight, padding=1)


class RawInLoop(nn.Module):
    shape = (2, 4, 8, 8)
    skipped = {f"convs.{i}": "RawInLoop.forward reads its weight without calling it" for i in (0, 1)}

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(), conv()])

    def forward(self, x):
        for layer in self.convs:
            x = F.conv2d(x, layer.weight, padding=1)
        return x


class RawHidden(nn.Module):
    """No reading of the source finds it: it takes a look at the gradients."""

    shape, converted = (2, 4, 8, 8), ["conv"]
    failing = {
        "gain": "the collisions change nothing",
        "backward": "conv gives its weight a gradient, but not",
        "fuse": "RuntimeError: the deployed model's outputs differ",
    }

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return F.conv2d(x, self.get_submodule("conv").weight, padding=1)


class Autoencoder(nn.Module):
    """The decoder is the encoder transposed: called once, and read once."""

    shape, skipped = (2, 4, 8, 8), {"conv": "Autoencoder.forward reads its weight without calling it"}

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return F.conv_transpose2d(self.conv(x).relu(), self.conv.weight, padding=1)


class DtypeOnly(nn.Module):
    """Reads what it may: facts about the weight, not its values."""

    shape, converted = (2, 4, 8, 8), ["conv"]

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        if self.conv.weight is None or self.conv.weight.shape[1] != x.shape[1]:
            raise ValueError("the input has other channels than the weight")
        return self.conv(x.to(self.conv.weight.dtype))


class Twice(nn.Module):
    shape, converted = (2, 4, 8, 8), ["conv"]

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


class TwoNames(nn.Module):
    shape, converted = (2, 4, 8, 8), ["a"]

    def __init__(self):
        super().__init__()
        self.a = conv()
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x).relu())


class ByKeyword(nn.Module):
    shape, converted = (2, 4, 8, 8), ["conv"]

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(input=x)


class Doubled(nn.Conv2d):
    shape = (2, 4, 8, 8)
    skipped = {"": "Doubled has behaviour of its own (forward, shape, skipped): it changes the convolution's output"}

    def __init__(self):
        super().__init__(4, 4, 3)

    def forward(self, x):
        return 2 * super().forward(x)


class ForthAndBack(nn.Conv2d):
    shape = (2, 4, 8, 8)
    skipped = {
        "": "ForthAndBack has behaviour of its own (forward, shape, skipped): it calls torch's convolution 2 times"
    }

    def __init__(self):
        super().__init__(4, 4, 3)

    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(-1))


class Dynamic(nn.Conv2d):
    """Its weight depends on the image, and is another one for each."""

    shape = (2, 4, 8, 8)
    skipped = {"": "it convolves with a weight of shape (8, 4, 3, 3)"}

    def __init__(self):
        super().__init__(4, 4, 3)

    def forward(self, x):
        weight = self.weight * x.mean((1, 2, 3)).view(-1, 1, 1, 1, 1)
        y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), groups=len(x))
        return y.view(len(x), self.out_channels, *y.shape[2:])


class Replaced(nn.Module):
    shape, skipped = (2, 4, 8, 8), {"conv": "its forward was replaced on the instance"}

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.conv.forward = torch.relu

    def forward(self, x):
        return self.conv(x)


class _Experts(nn.Module):
    """CondConv (arXiv 1904.04971)."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = 4, 4, (3, 3)
        self.weight = nn.Parameter(torch.randn(2, 4 * 4 * 9))

    def forward(self, x):
        mixed = self.weight.softmax(0).sum(0).view(4, 4, 3, 3)
        return F.conv2d(x, mixed)


class Conditional(nn.Sequential):
    shape, converted = (2, 4, 8, 8), ["0"]
    skipped = {"1": "_Experts is no convolution of torch's"}

    def __init__(self):
        super().__init__(conv(), _Experts())


class Deformable(nn.Module):
    shape, converted = (2, 4, 8, 8), ["offset"]
    skipped = {"conv": "DeformConv2d is no convolution of torch's"}

    def __init__(self):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(4, 18, 3, padding=1), DeformConv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offset(x))


class Unused(nn.Module):
    """An auxiliary head that only training reaches, and a layer that nothing does."""

    shape, converted = (2, 4, 8, 8), ["conv", "aux", "never"]

    def __init__(self):
        super().__init__()
        self.conv, self.aux, self.never = conv(), conv(), conv()

    def forward(self, x):
        y = self.conv(x)
        return (y, self.aux(y)) if self.training else y


class Checkpointed(nn.Module):
    shape, converted = (2, 4, 8, 8), ["conv"]

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return checkpoint(self.conv, x, use_reentrant=False).relu()


class Hooked(nn.Module):
    shape, converted = (2, 4, 8, 8), ["conv"]

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.conv.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        self.conv.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        return self.conv(x)


class NoGradient(nn.Module):
    shape, converted = (2, 4, 8, 8), ["stem", "conv"]

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv(), conv()

    def forward(self, x):
        with torch.no_grad():
            x = self.stem(x)
        return self.conv(x)
