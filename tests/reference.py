"""The IC unit written the slow way, from the paper's formula: patches gathered by index, no code of src."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pads_of(layer: nn.Module) -> list[int]:
    """(before, after) padding pairs, last dimension first, straight from the constructor's arguments."""
    pairs: list[int] = []
    for i in reversed(range(len(layer.kernel_size))):
        if layer.padding == "valid":
            pairs += [0, 0]
        elif layer.padding == "same":
            total = layer.dilation[i] * (layer.kernel_size[i] - 1)
            pairs += [total // 2, total - total // 2]
        else:
            pairs += [layer.padding[i]] * 2
    return pairs


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """``(N, groups, C/groups * k, L_out)``: every receptive field, and the output size as a second value."""
    nd = len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, pads_of(layer), mode=mode)
    sizes = []
    for i in reversed(range(nd)):
        k, d, step = layer.kernel_size[i], layer.dilation[i], layer.stride[i]
        size = (x.shape[2 + i] - d * (k - 1) - 1) // step + 1
        index = (torch.arange(size)[:, None] * step + torch.arange(k)[None, :] * d).flatten()
        x = x.index_select(2 + i, index).unflatten(2 + i, (size, k))
        sizes.insert(0, size)
    x = x.permute(0, 1, *range(3, 3 + 2 * nd, 2), *range(2, 2 + 2 * nd, 2))
    n, c, g = x.shape[0], x.shape[1], layer.groups
    return x.reshape(n, g, c // g, -1, *sizes).flatten(2, 3).flatten(3), sizes


def ic_conv(layer: nn.Module, x: Tensor, w_prime: Tensor) -> Tensor:
    """z = y + gain * relu(y - w' s + b1) + b2 for a batched input and the layer's own arguments."""
    fields, sizes = patches(layer, x)
    g = layer.groups
    weight = layer.weight.reshape(g, layer.out_channels // g, -1)
    y = torch.einsum("ngkl,gok->ngol", fields, weight)
    s = fields.sum(2)[:, :, None]
    u = y - w_prime.reshape(g, -1, 1) * s
    if layer.inner_bias is not None:
        u = u + layer.inner_bias.reshape(g, -1, 1)
    branch = torch.where(u > 0, u, torch.zeros_like(u))
    if layer.gain is not None:
        branch = branch * layer.gain.reshape(g, -1, 1)
    z = y + branch
    if layer.bias is not None:
        z = z + layer.bias.reshape(g, -1, 1)
    return z.reshape(x.shape[0], layer.out_channels, *sizes)


def ic_linear(layer: nn.Module, x: Tensor, w_prime: Tensor) -> Tensor:
    """The neuron of arXiv 2011.11271, one output at a time."""
    columns = []
    for o in range(layer.out_features):
        y = (x * layer.weight[o]).sum(-1)
        u = y - w_prime[o] * x.sum(-1)
        if layer.inner_bias is not None:
            u = u + layer.inner_bias[o]
        branch = torch.where(u > 0, u, torch.zeros_like(u))
        if layer.gain is not None:
            branch = branch * layer.gain[o]
        columns.append(y + branch + (layer.bias[o] if layer.bias is not None else 0))
    return torch.stack(columns, -1)


def assert_gradients(layer: nn.Module, x: Tensor) -> None:
    """First and second derivatives by the input and every parameter are those of finite differences; in float64."""
    names, params = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *params: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    arguments = (x.requires_grad_(), *params)
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)
