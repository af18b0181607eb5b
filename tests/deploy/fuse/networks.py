"""What the tests of fuse_ deploy."""

import torch
from torch import nn

import strategies
from icnets import ICConv2d, ICLinear


def random_norm(norm: nn.Module, seed: int = 0, zeros: bool = True) -> nn.Module:
    """Random statistics; weights of either sign, and some zero."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda t: torch.randn(t.shape, generator=g, dtype=torch.float64).to(t)  # noqa: E731
    with torch.no_grad():
        if norm.running_mean is not None:
            norm.running_mean.copy_(draw(norm.running_mean))
            norm.running_var.copy_(draw(norm.running_var).abs() + 0.1)
        if norm.weight is not None:
            norm.weight.copy_(draw(norm.weight))
            norm.bias.copy_(draw(norm.bias))
            if zeros:
                norm.weight[torch.rand(norm.weight.shape, generator=g) < 0.2] = 0
    return norm


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))


class Net(nn.Module):
    """``conv`` and ``bn``, and a forward pass given by the test."""

    def __init__(self, forward, bn=None, **more):
        super().__init__()
        self.conv = strategies.randomise(ICConv2d(4, 4, 3, padding=1, dtype=torch.float64), 0)
        self.bn = bn or random_norm(nn.BatchNorm2d(4, dtype=torch.float64))
        self.other = random_norm(nn.BatchNorm2d(4, dtype=torch.float64), 5)
        self.by_test = forward
        self.cache = []
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.by_test(self, x)


def small() -> tuple[nn.Module, torch.Tensor]:
    layers = [
        strategies.randomise(ICConv2d(4, 6, 3, padding=1, groups=2), 0),
        random_norm(nn.BatchNorm2d(6)),
        nn.ReLU(),
        strategies.randomise(ICConv2d(6, 6, 3, groups=6, dilation=2, gain=0.5), 1),
        random_norm(nn.BatchNorm2d(6), 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        strategies.randomise(ICLinear(6, 3, gain=0.5), 2),
    ]
    return nn.Sequential(*layers).eval(), torch.randn(2, 4, 12, 12)
