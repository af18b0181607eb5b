"""Convolutions that pad in ways of their own."""

import math

import torch.nn.functional as F
from torch import nn


class Same(nn.Conv2d):
    """TensorFlow's SAME padding, by the size of the input."""

    shape, converted = (2, 3, 9, 10), [""]

    def __init__(self):
        super().__init__(3, 4, 3, 2)

    def forward(self, x):
        pads = []
        for n, k, s in reversed(list(zip(x.shape[2:], self.kernel_size, self.stride, strict=True))):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Reflecting(nn.Conv2d):
    shape, converted = (2, 3, 8, 8), [""]

    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class Causal(nn.Conv1d):
    shape, converted = (2, 3, 12), [""]

    def __init__(self):
        super().__init__(3, 3, 3, dilation=2, groups=3)

    def forward(self, x):
        return super().forward(F.pad(x, (4, 0)))


class Cached(nn.Conv2d):
    """Keeps the padding of the first input that it sees: a trial must not leave its own behind."""

    shape, converted = (2, 3, 7, 7), [""]

    def __init__(self):
        super().__init__(3, 4, 3, 2)
        self.pad = None

    def forward(self, x):
        if self.pad is None:
            self.pad = nn.ZeroPad2d((x.shape[-1] % 2, 1, 0, 1))
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride)


class Below(nn.Conv3d):
    """What is its own is ``_conv_forward``."""

    shape, converted = (2, 2, 4, 5, 4), [""]

    def __init__(self):
        super().__init__(2, 3, 2)

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(F.pad(input, (1, 0, 1, 0, 1, 0), mode="replicate"), weight, bias)


class Worded(nn.Sequential):
    shape, converted = (2, 3, 9, 9), ["0", "1"]

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding="same", dilation=2), nn.Conv2d(4, 4, 3, padding="valid"))


class Modes(nn.Sequential):
    shape, converted = (2, 3, 9, 9), ["0", "1", "2"]

    def __init__(self):
        modes = ("reflect", "replicate", "circular")
        super().__init__(*[nn.Conv2d(3, 3, 3, padding=(1, 2), padding_mode=mode) for mode in modes])
