"""torch's layers with a collision in them: subclasses that keep torch's arguments, attributes and state-dict keys."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from icnets.unit import functional, receptive_field
from icnets.unit.collision import Collision
from icnets.unit.receptive_field import padded, per_dimension

_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _ICConv(Collision):
    """The forward pass that the three convolutions share."""

    def forward(self, input: Tensor) -> Tensor:
        # Module attribute access is slow; read each one once.
        x, padding, unpadded = padded(self, input)
        conv = (x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        vectors = (self.collision, self.inner_bias, self.gain)
        return functional.convolution(self.kernel_size, conv, vectors, self.sum_scale, unpadded)


class _ICConvTranspose(Collision):
    """The receptive field and the forward pass that the three transposed convolutions share."""

    @property
    def fan_in(self) -> int:
        """n, the most inputs that meet in one output: C_in / groups x ceil(kernel size / stride)."""
        stride = per_dimension(self.stride, len(self.kernel_size))
        taps = [math.ceil(k / step) for k, step in zip(self.kernel_size, stride, strict=True)]
        return self.in_channels // self.groups * math.prod(taps)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        nd, bias = len(self.kernel_size), self.bias
        window = (self.stride, self.padding, self.kernel_size, nd, self.dilation)
        extra = self._output_padding(input, output_size, *window)  # type: ignore[operator]
        y = _TRANSPOSED[nd](input, self.weight, bias, self.stride, self.padding, extra, self.groups, self.dilation)
        field = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        s = receptive_field.transposed_sum(input, *field, [y.size(i - nd) for i in range(nd)], self.sum_scale)
        return functional.collide(y, s, self.collision, self.inner_bias, bias, self.gain, nd)


class ICConv1d(_ICConv, nn.Conv1d, basic=nn.Conv1d):
    """1-D convolution with inter-layer collision (arXiv 2102.03495)."""


class ICConv2d(_ICConv, nn.Conv2d, basic=nn.Conv2d):
    """2-D convolution with inter-layer collision (arXiv 2102.03495)."""


class ICConv3d(_ICConv, nn.Conv3d, basic=nn.Conv3d):
    """3-D convolution with inter-layer collision (arXiv 2102.03495)."""


class ICConvTranspose1d(_ICConvTranspose, nn.ConvTranspose1d, basic=nn.ConvTranspose1d):
    """1-D transposed convolution with inter-layer collision."""


class ICConvTranspose2d(_ICConvTranspose, nn.ConvTranspose2d, basic=nn.ConvTranspose2d):
    """2-D transposed convolution with inter-layer collision."""


class ICConvTranspose3d(_ICConvTranspose, nn.ConvTranspose3d, basic=nn.ConvTranspose3d):
    """3-D transposed convolution with inter-layer collision."""


class ICLinear(Collision, nn.Linear, basic=nn.Linear):
    """The IC neuron: a linear layer with collision (arXiv 2011.11271)."""

    def forward(self, input: Tensor) -> Tensor:
        vectors = {"inner_bias": self.inner_bias, "gain": self.gain}
        return functional.ic_linear(input, self.weight, self.collision, self.bias, **vectors, scale=self.sum_scale)


ICLayer = ICConv1d | ICConv2d | ICConv3d | ICConvTranspose1d | ICConvTranspose2d | ICConvTranspose3d | ICLinear
IC_LAYERS: tuple[type[ICLayer], ...] = get_args(ICLayer)


def unit_of(module: nn.Module) -> type[ICLayer] | None:
    """The IC layer that can take the place of ``module``, by its type; None if there is none."""
    return next((t for t in IC_LAYERS if isinstance(module, t.basic_type)), None)


def ic_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and Parameter of everything IC added to ``model``: ``*.collision``, ``*.inner_bias``, ``*.gain``.

    They are called ``*.ic_collision``, ``*.ic_inner_bias`` and ``*.ic_gain`` where a layer has one of these names for
    something of its own. Of one that is pruned or parametrised, what is trained in its place comes:
    ``*.collision_orig``, ``*.parametrizations.collision.original``. A shared unit comes once, under its first name,
    unless ``remove_duplicate`` is False, as in a state dict.

    Example:
        >>> [name for name, _ in ic_parameters(nn.Sequential(ICConv2d(3, 8, 3), nn.ReLU()))]
        ['0.collision', '0.inner_bias']
    """
    for prefix, module in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, IC_LAYERS):
            own = dict(module.named_parameters(remove_duplicate=False))
            for key in module.vector_keys():
                if key in own:
                    yield f"{prefix}.{key}" if prefix else key, own[key]
