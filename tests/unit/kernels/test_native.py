"""The compiled operators: that they are built, loaded and used, and what keeps them from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from icnets import ICConv2d, fuse_
from icnets.cli import main
from icnets.unit import functional
from icnets.unit.kernels import native
from strategies import randomise


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """Once, in the place of the folder's fixture."""
    try:
        native.build()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def called(monkeypatch):
    """Names of the operators that were called."""
    names = []

    def watched(name, operator):
        return lambda *args: names.append(name) or operator(*args)

    operators = {name: watched(name, operator) for name, operator in native._operators.items()}
    monkeypatch.setattr(native, "_operators", operators)
    return names


def in_new_process(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_each_operator_is_used(called):
    layer, x = randomise(ICConv2d(3, 4, 3), 1), torch.randn(2, 3, 6, 6)
    layer(x).sum().backward()
    assert called == ["field_sums", "collide_", "collide_backward"]  # the input wants no gradient
    called.clear()
    with torch.no_grad():
        layer(x)
        fuse_(layer.eval(), x)
        assert called[0] == "ic_conv"
        called.clear()
        layer(x)
    assert called == ["deployed_conv"]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, ["ic_conv"] * 2), (torch.float16, [])])
def test_half_precision(called, dtype, expected):
    layer, x = ICConv2d(3, 4, 3, dtype=dtype), torch.randn(2, 3, 6, 6, dtype=dtype)
    with torch.no_grad():
        layer(x)
        with torch.autocast("cpu", dtype):
            ICConv2d(3, 4, 3)(x.float())
    assert called == expected
    called.clear()
    with torch.autocast("cpu", dtype):
        z = ICConv2d(3, 4, 3)(x.float().requires_grad_())
    assert z.dtype is dtype
    z.sum().backward()
    trained = ["field_sums", "collide_", "collide_backward", "add_field_gradient_"]
    assert called == (trained if expected else [])


def test_results_do_not_depend_on_the_number_of_threads():
    shape = (5, 96, 31, 29)
    y, dz, s = torch.randn(shape), torch.randn(shape), torch.randn(5, 3, 31, 29)
    collision, offset, gain = torch.randn(3, 96)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, torch.channels_last):
                z = functional.collide_(y.contiguous(memory_format=layout).clone(), s, collision, 0.3, offset, gain)
                found.append((z, *functional.collide_backward(dz, z, False, s, collision, offset, gain, 0.3)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(found[2:], found[:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


SHAPES = [(9, 64, 1, 40), (9, 64, 4, 7), (9, 64, 64, 19), (9, 64, 1, 1), (3, 24, 1, 20), (2, 40, 8, 13), (5, 31, 31, 9)]
SHAPES += [(2, 1, 1, 33), (1, 530, 2, 6), (2, 18, 2, 21)]
BOUNDS = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_large_and_odd_activations_equal_torchs_passes_in_double_precision(monkeypatch, layout, shape, dtype):
    # More places and images than one item of work has, and channels that fill no vector of the processor's.
    n, channels, groups, side = shape
    work = torch.float64 if dtype is torch.float64 else torch.float32
    y, dz = (torch.randn(n, channels, side, side).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    s, ds = torch.randn(2, n, groups, side, side, dtype=work)
    collision, offset = torch.randn(2, channels, dtype=work)
    gain = torch.rand(channels, dtype=work)

    def everything(exact):
        a, b, t, u, v, o, g = (x.double() if exact else x for x in (y, dz, s, ds, collision, offset, gain))
        window = ([1, 1], [1, 1], [0, 0], [1, 1])
        sums = a.unflatten(1, [groups, -1]).sum(2) if exact else native.operator("field_sums")(a, *window, groups)
        seen = b.clone(memory_format=torch.preserve_format)
        if exact:
            seen += u.repeat_interleave(channels // groups, 1)
        else:
            native.operator("add_field_gradient_")(seen, u, *window)
        z = functional.collide_(a.clone(), t, v, 0.3, o, g)
        # Backward from one z: which branches fire must not hang on its rounding.
        z_given = functional.collide_(
            y.clone().double(), s.double(), collision.double(), 0.3, offset.double(), gain.double()
        )
        z_given = z_given.to(dtype).to(a.dtype).contiguous(memory_format=layout)
        return [sums, seen, z, *functional.collide_backward(b, z_given, False, t, v, o, g, 0.3)]

    assert native.serves(y, dz, s)
    fast = everything(exact=False)
    monkeypatch.setattr(native, "_operators", {})
    expected = everything(exact=True)
    for found, right in zip(fast, expected, strict=True):
        limit = BOUNDS[dtype] * right.abs().max().clamp(min=1)
        assert (found.double() - right).abs().max() <= limit


def test_bfloat16_rounds_as_torch_does():
    y = torch.tensor([1.0, 1.00390625, 1.01171875, 3.4e38, float("inf"), float("nan"), -1.00390625, 1e-40] * 9)
    y = y.to(torch.bfloat16).view(1, 1, 8, 9)
    s, add = torch.zeros(1, 1, 8, 9), torch.linspace(-1, 1, 72).view(1, 1, 8, 9)
    for layout in (torch.contiguous_format, torch.channels_last):
        z = y.clone().contiguous(memory_format=layout)
        native.operator("add_field_gradient_")(z, add, [1, 1], [1, 1], [0, 0], [1, 1])
        torch.testing.assert_close(z, (y.float() + add).to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
    assert functional.collide_(y, s, torch.zeros(1), 1.0, None, None).dtype is torch.bfloat16


def test_not_a_number_stays_one():
    layer, x = ICConv2d(1, 1, 1), torch.full((1, 1, 2, 2), float("nan"))
    with torch.no_grad():
        assert layer(x).isnan().all()


def test_an_activation_whose_vectors_have_another_type():
    layer = randomise(ICConv2d(3, 4, 3), 1)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        z = layer(x)
        layer.collision.data = layer.collision.double()
        torch.testing.assert_close(layer(x), z)


def test_profilers_and_counters_see_torchs_convolution(called):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ICConv2d(3, 4, 3)(torch.randn(2, 3, 6, 6))
    assert counter.get_total_flops() == 2 * 2 * 16 * 4 * 3 * 9
    assert not called


@pytest.mark.slow
def test_can_be_turned_off():
    code = "from icnets.unit.kernels import native; print(native.loaded())"
    assert in_new_process(code).stdout.split() == ["True"]
    assert in_new_process(code, ICNETS_NATIVE="0").stdout.split() == ["False"]


def test_a_damaged_library_is_left_unused_and_named(tmp_path):
    code = "from icnets.unit.kernels import native; print(native.loaded())"
    path = tmp_path / native.library().name
    path.write_bytes(b"\x7fELF damaged")
    done = in_new_process(code, ICNETS_CACHE=str(tmp_path))
    assert done.stdout.split() == ["False"]
    assert f"{path} can't be used" in done.stderr
    assert "build it again" in done.stderr


def test_the_command_builds_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "_run", lambda command: Path(command[command.index("-o") + 1]).write_bytes(b"built"))
    monkeypatch.setenv("ICNETS_CACHE", str(tmp_path / "new"))
    for said in ("are built", "were built already"):
        assert main(["build"]) == 0
        assert said in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == [native.library().name]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler 'no-such-compiler'; install g++, or set CXX"),
        ({"CXX": "false"}, "false can't build the CPU kernels"),
    ],
)
def test_what_keeps_them_from_being_built(tmp_path, monkeypatch, capsys, change, expected):
    monkeypatch.setenv("ICNETS_CACHE", str(tmp_path))
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert main(["build"]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_systems_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ICNETS_CACHE", str(tmp_path))
    monkeypatch.setattr(native.platform, "system", lambda: "Windows")
    with pytest.raises(ValueError, match="on Linux only, not on Windows"):
        native.build()


def test_gradients_that_are_not_dense(monkeypatch):
    layer = randomise(ICConv2d(3, 4, 3, dtype=torch.float64), 2)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    parameters = [x, *layer.parameters()]
    # Of a mean, and through a transposed view.
    results = []
    for enabled in (True, False):
        monkeypatch.setattr(functional, "_ENABLED", enabled)
        z = layer(x)
        results.append(torch.autograd.grad(z.mean() + (z.transpose(2, 3) * torch.arange(4.0)).sum(), parameters))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_batch_norm_behind_it_trains(called):
    model = nn.Sequential(ICConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), ICConv2d(8, 4, 1))
    torch.manual_seed(0)
    loss = model(torch.randn(4, 3, 9, 9)).square().mean()
    loss.backward()
    assert called == ["field_sums", "collide_"] * 2 + ["collide_backward", "add_field_gradient_", "collide_backward"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
