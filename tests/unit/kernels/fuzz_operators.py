"""Random calls of the compiled operators, right ones and wrong ones: a right value or a clean error, and no crash.

    python fuzz_operators.py FIRST COUNT

Calls each operator with the seeds FIRST <= seed < FIRST + COUNT. Each call's name and seed are printed before it is
made, so that a crash says whose it is; ``python fuzz_operators.py SEED 1`` makes it again. Values are small multiples
of 1/4, so that sums are exact and no rounding decides where a branch fires; right values come from torch's own
convolution, in double precision.
"""

import random
import sys
from collections import Counter

import torch
import torch.nn.functional as F

from icnets.unit.kernels import native

HUGE = [2**50, 2**62, 2**63 - 1, -(2**63)]
SUMS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}  # by activation
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 1e-2}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64, torch.bool]


# -- right arguments -------------------------------------------------------------------------------------------------


def numbers(rng, shape, dtype):
    values = torch.tensor([rng.randint(-8, 8) / 4 for _ in range(torch.Size(shape).numel())], dtype=dtype)
    t = values.view(shape)
    if t.dim() > 2 and rng.random() < 0.3:
        t = t.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    return t


def windows(rng):
    """Arguments of a convolution that fit each other."""
    nd = rng.choice([1, 2, 2, 3])
    groups, per_in, per_out = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3)
    draw = lambda low, high: [rng.randint(low, high) for _ in range(nd)]  # noqa: E731
    kernel, stride, padding, dilation = draw(1, 3), draw(1, 3), draw(0, 2), draw(1, 2)
    if rng.random() < 0.3:
        kernel, stride, padding = [1] * nd, [1] * nd, [0] * nd
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    places = [max(r, 1) + rng.randint(0, 4) for r in reach]
    out = [(n - r) // s + 1 for n, r, s in zip(places, reach, stride, strict=True)]
    x, y = [rng.randint(1, 3), groups * per_in, *places], [groups * per_out, per_in, *kernel]
    return x, y, kernel, stride, padding, dilation, groups, out


def right(name, rng):
    """The operator's arguments by name, in its order."""
    # Not the convolutions in half: their output's rounding would decide where a branch fires.
    dtype = rng.choice([torch.float32, torch.float64] if "conv" in name else [*SUMS])
    x, weight, kernel, stride, padding, dilation, groups, out = windows(rng)
    n, c = x[0], weight[0]

    def vector(optional=True):
        return None if optional and rng.random() < 0.3 else numbers(rng, [c], SUMS[dtype])

    conv = {"stride": stride, "padding": padding, "dilation": dilation}
    field = {"kernel": kernel, **conv}
    full = {"x": numbers(rng, x, dtype), "weight": numbers(rng, weight, dtype), "bias": vector(), **conv}
    y, s = numbers(rng, [n, c, *out], dtype), numbers(rng, [n, groups, *out], SUMS[dtype])
    unit = {"collision": vector(False), "factor": rng.randint(-4, 4) / 4, "offset": vector(), "gain": vector()}
    slopes = {"slope": vector(), "uniform_slope": 0.5, "sign": vector(), "collision": vector(), "offset": vector()}
    return {
        "ic_conv": {**full, "groups": groups, **unit},
        "deployed_conv": {**full, "groups": groups, **slopes},
        "field_sums": {"x": full["x"], **field, "groups": groups},
        "add_field_gradient_": {"dx": full["x"], "ds": s, **field},
        "collide_": {"y": y, "s": s, **unit},
        "collide_backward": {
            "dz": numbers(rng, y.shape, dtype),
            "z": y,
            "z_is_y": rng.random() < 0.5,
            "s": s,
            **unit,
        },
    }[name]


# -- wrong ones, or unusual ones -------------------------------------------------------------------------------------


def other_tensor(rng, t):
    """Another shape, type, layout or device; or the same numbers in other memory."""
    dim = rng.randrange(t.dim()) if t.dim() else 0
    changes = [
        lambda: t[0],
        lambda: t[None],
        lambda: t.sum(),
        lambda: torch.cat([t, t.narrow(dim, 0, 1)], dim),
        lambda: t.narrow(dim, 0, t.size(dim) - 1),
        lambda: t.narrow(dim, 0, 0),
        lambda: t.transpose(dim, 0),
        lambda: t.flatten(),
        lambda: t.to(rng.choice(DTYPES)),
        lambda: t.to_sparse(),
        lambda: t.float().to_mkldnn(),
        lambda: t.to("meta"),
        lambda: t.narrow(dim, 0, 1).expand_as(t),
        lambda: torch.stack([t, t], -1)[..., 0],
        lambda: torch.complex(-t, -t).conj().imag,
        lambda: t.clone().requires_grad_(),
        lambda: t.new_zeros([1] * t.dim()).expand([*t.shape[:dim], 2**61, *t.shape[dim + 1 :]]),
        lambda: t.movedim(1, -1).contiguous().movedim(-1, 1),
    ]
    return rng.choice(changes)()


def other(rng, value):
    """Another value in the place of an argument."""
    if isinstance(value, torch.Tensor):
        return other_tensor(rng, value)
    if value is None:
        return torch.zeros(rng.randint(0, 3))
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return rng.choice([float("nan"), float("inf"), 0.0, -2.0])
    if isinstance(value, int):
        return rng.choice([0, -1, 1, 2, 3, *HUGE])
    changed = list(value) or [1]
    changed[rng.randrange(len(changed))] = rng.choice([0, -1, 1, 2, 4, 9, *HUGE])
    return rng.choice([changed, changed, value[:1], [], [*value, 1], [*value, 1, 1, 1], changed[:1]])


# -- right values ----------------------------------------------------------------------------------------------------


def convolved(x, weight, bias, stride, padding, dilation, groups):
    return (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3](x, weight, bias, stride, padding, dilation, groups)


def sums(x, kernel, stride, padding, dilation, groups):
    ones = x.new_ones([groups, x.size(1) // groups, *kernel])
    return convolved(x, ones, None, stride, padding, dilation, groups)


def columns(y, *vectors):
    """For each vector, or its value where it is absent, ``(C, 1, ...)``."""
    vectors = (torch.tensor(v, dtype=y.dtype) if isinstance(v, int | float) else v for v in vectors)
    return [v.expand(y.size(1)).reshape([-1] + [1] * (y.dim() - 2)) for v in vectors]


def or_else(value, absent):
    return absent if value is None else value


def argument(y, s, collision, factor, offset, gain):
    """The branch's argument; s, w' and the gain for each channel."""
    wide = s.repeat_interleave(y.size(1) // s.size(1), 1)
    k, o, g = columns(y, collision * factor, or_else(offset, 0.0), or_else(gain, 1.0))
    return y - k * wide + o, wide, k, g


def collide(y, s, collision, factor, offset, gain):
    u, _, _, g = argument(y, s, collision, factor, offset, gain)
    return y + g * u.relu()


def reference(name, a):
    """What the operator must give for the arguments ``a``, in double precision."""
    if name == "field_sums":
        return [sums(*a.values())]
    if name == "add_field_gradient_":
        x = torch.zeros_like(a["dx"]).requires_grad_()
        field = (a["kernel"], a["stride"], a["padding"], a["dilation"], a["ds"].size(1))
        return [a["dx"] + torch.autograd.grad(sums(x, *field), x, a["ds"])[0]]
    if name == "collide_":
        return [collide(**a)]
    if name == "collide_backward":
        dz, z, is_y, s = (a[n] for n in ("dz", "z", "z_is_y", "s"))
        t, wide, k, g = argument(z, s, a["collision"], a["factor"], a["offset"], a["gain"])
        m, over = torch.where(t > 0, dz, 0.0), [0, *range(2, z.dim())]
        ds = -(k * g * m).unflatten(1, (s.size(1), -1)).sum(2)
        plain, g = m.sum(over), g.flatten()
        by_branch = (t.relu() * dz).sum(over) / (1 if is_y else 1 + g)
        vectors = [-a["factor"] * g * (m * wide).sum(over), g * plain, by_branch if a["gain"] is not None else None]
        return [dz + g.view(k.shape) * m, ds, *vectors]
    x, weight, conv = a["x"], a["weight"], [a[n] for n in ("stride", "padding", "dilation", "groups")]
    y, s = convolved(x, weight, a["bias"], *conv), sums(x, weight.shape[2:], *conv)
    if name == "ic_conv":
        return [collide(y, s, a["collision"], a["factor"], a["offset"], a["gain"])]
    wide = s.repeat_interleave(y.size(1) // s.size(1), 1) / weight[0, 0].numel()
    absent = {"slope": a["uniform_slope"], "sign": 1.0, "collision": 0.0, "offset": 0.0}
    slope, sign, k, o = columns(y, *(or_else(a[n], default) for n, default in absent.items()))
    return [sign * torch.where(y > 0, y, slope * y) + k * wide + o]


def doubled(value):
    return value.detach().double() if isinstance(value, torch.Tensor) else value


def same(a, b):
    return (
        a is b
        or a.layout is not torch.strided
        or a.device.type != "cpu"
        or torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    )


def call(name, seed):
    """Makes one call; returns what came of it."""
    rng = random.Random(f"{name} {seed}")
    arguments = right(name, rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        which = rng.choice(list(arguments))
        try:
            arguments[which] = other(rng, arguments[which])
        except (RuntimeError, IndexError):  # no such form of it
            continue
    given = {
        k: v.detach().clone() if isinstance(v, torch.Tensor) and v.numel() < 2**30 else v for k, v in arguments.items()
    }
    try:
        with torch.no_grad():
            found = native.operator(name)(*arguments.values())
    except (RuntimeError, ValueError) as error:
        changed = [k for k, v in given.items() if isinstance(v, torch.Tensor) and not same(arguments[k], v)]
        if changed:
            raise AssertionError(f"it was refused, but changed {changed}") from error
        return f"refused by {type(error).__name__}"
    expected = reference(name, {k: doubled(v) for k, v in given.items()})
    found = [found] if isinstance(found, torch.Tensor) else list(found)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            close = {"rtol": (tolerance := TOLERANCES[a.dtype]), "equal_nan": True}
            largest = b.detach().abs().nan_to_num().max().item() if b.numel() else 0
            rounded = largest if a.dtype == torch.bfloat16 else 1  # of a sum whose terms cancel
            torch.testing.assert_close(a.double(), b.detach(), atol=tolerance * max(rounded, 1), **close)
    return "right"


def main(first, count):
    torch.set_num_threads(1)
    assert native.loaded()
    outcomes = Counter()
    for name in native._NAMES:
        for seed in range(first, first + count):
            print(name, seed, flush=True)
            outcomes[f"{name} {call(name, seed)}"] += 1
    print("all done:", dict(sorted(outcomes.items())))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
