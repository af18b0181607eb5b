"""Layers whose weight a forward pass reads under another name are found in its source, and only these."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import convert_


class Pair(nn.Module):
    """``raw`` are read, ``called`` are called."""

    def __init__(self):
        super().__init__()
        self.raw, self.called = (nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2)) for _ in range(2))
        self.norm, self.named = nn.BatchNorm2d(3), nn.ModuleDict({"a": nn.Conv2d(3, 3, 1)})


class OtherSelf(Pair):
    def forward(this, x):
        for conv in this.raw:
            x = F.conv2d(x, conv.weight)
        return this.called[1](this.called[0](x))


class Zipped(Pair):
    def forward(self, x):
        for i, (raw, conv) in enumerate(zip(self.raw, self.called, strict=True)):
            x = F.conv2d(conv(x), raw.weight) * (i + 1)
        return x


class Tupled(Pair):
    def forward(self, x):
        first, other = self.raw[0], self.called[0]
        return F.conv2d(other(x), torch.stack([m.weight for m in (first, self.raw[1])]).mean(0))


class Items(Pair):
    def forward(self, x):
        for _, conv in self.named.items():
            x = F.conv2d(x, conv.weight)
        for conv in reversed(list(self.named.values())):
            x = F.conv2d(x, conv.weight)
        return self.called[0](x)


class Chosen(Pair):
    def forward(self, x):
        conv = self.raw[0] if x.shape[0] > 1 else self.raw[1]
        if (more := self.named["a"]) is not None:
            x = F.conv2d(x, more.weight)
        return F.conv2d(x, conv.weight)


class Norms(Pair):
    """Only the norm's weight is read, beside convolutions in the same loop."""

    def forward(self, x):
        for conv, norm in zip(self.called, [self.norm, self.norm], strict=True):
            x = F.batch_norm(conv(x), norm.running_mean, norm.running_var, norm.weight)
        return x

    @staticmethod
    def helper(conv):
        return conv.weight


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (OtherSelf, {"raw"}),
        (Zipped, {"raw"}),
        (Tupled, {"raw"}),
        (Items, {"named"}),
        (Chosen, {"raw", "named"}),
        (Norms, set()),
    ],
)
def test_what_is_read_under_another_name_is_left_basic(kind, read):
    report = convert_(kind())
    assert {name.partition(".")[0] for name in report.skipped} == read
    assert {name.partition(".")[0] for name in report.converted} == {"raw", "called", "named"} - read
