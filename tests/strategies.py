"""Hypothesis strategies over everything the layers' constructors take."""

import torch
from hypothesis import strategies as st

from icnets import ICConv1d, ICConv2d, ICConv3d, ICLinear

CONVS = {1: ICConv1d, 2: ICConv2d, 3: ICConv3d}
COLLISIONS = st.fixed_dictionaries(
    {
        "inner_bias": st.booleans(),
        "gain": st.sampled_from([None, 0.5]),
        "scale": st.sampled_from(["sqrt", "sum", "mean"]),
    }
)


def randomise(layer: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter, the new ones too, a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return layer


@st.composite
def convs(draw, max_size: int = 6):
    """An IC convolution in float64 with random parameters, and a batched input that fits it."""
    nd = draw(st.sampled_from([1, 2, 3]))
    groups, per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        groups, per_in, per_out = groups * per_in, 1, draw(st.integers(1, 2))  # depthwise
    dims = lambda low, high: st.tuples(*[st.integers(low, high)] * nd)  # noqa: E731
    kernel, stride, dilation = draw(dims(1, 3)), draw(dims(1, 3)), draw(dims(1, 2))
    padding = draw(st.sampled_from(["same", "valid", "int", "tuple"]))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    if padding == "same":
        stride = (1,) * nd
    elif padding == "int":
        padding = draw(st.integers(0, 2))
    elif padding == "tuple":
        padding = draw(dims(0, 2))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    # Reflection needs an input wider than its padding, and the window must fit in.
    shape = [draw(st.integers(max(r, 3, r // 2 + 1), max(r, 3) + max_size // nd)) for r in reach]
    if draw(st.booleans()):
        kernel, stride, dilation = kernel[0], stride[0], dilation[0]  # as int
        widest = dilation * (kernel - 1) + 1
        shape = [max(n, widest) for n in shape]
    layer = CONVS[nd](
        groups * per_in,
        groups * per_out,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        mode,
        None,
        torch.float64,
        **draw(COLLISIONS),
    )
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draw(st.integers(1, 2)), layer.in_channels, *shape, dtype=torch.float64, generator=generator)
    return randomise(layer, seed + 1), x


@st.composite
def linears(draw):
    """An IC linear layer in float64 with random parameters, and an input of any rank that fits it."""
    layer = ICLinear(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 5)),
        draw(st.booleans()),
        dtype=torch.float64,
        **draw(COLLISIONS),
    )
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    shape = [*draw(st.lists(st.integers(1, 3), max_size=3)), layer.in_features]
    return randomise(layer, seed + 1), torch.randn(shape, dtype=torch.float64, generator=generator)
