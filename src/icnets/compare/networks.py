"""The networks of comparisons: timm's, those of import paths, and controls with a function before each norm."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from icnets.compare.data_kinds import imported
from icnets.compare.settings import Network
from icnets.timm_models import create_model


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


def create(network: Network, *, num_classes: int, in_chans: int, imports: Mapping[str, str] | None = None) -> nn.Module:
    """The network with random weights, not converted.

    Args:
        network: its name is one of ``imports``, or timm's.
        num_classes: of its output.
        in_chans: of its input.
        imports: import paths of functions that make a network, by name.

    Raises:
        ValueError: there is no network of this name, or no function ``before_norm``.
        TypeError: options that it doesn't take.
    """
    path = (imports or {}).get(network.name)
    build = partial(create_model, network.name, ic=None) if path is None else imported(path)
    model: nn.Module = build(num_classes=num_classes, in_chans=in_chans, **network.options)
    kind = network.before_norm
    if kind is not None:
        if kind not in BEFORE_NORM:
            raise ValueError(f"before_norm is {kind!r}; it must be one of {', '.join(BEFORE_NORM)}")
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                model.set_submodule(name, nn.Sequential(module, BEFORE_NORM[kind](module.out_channels)))
    return model
