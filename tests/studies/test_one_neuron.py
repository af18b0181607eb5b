from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from icnets.unit.layers import ICLinear
from studies.one_neuron import boundary_experiment, fit_neuron, plot_boundaries, two_moons, xor


def test_ic_neuron_solves_xor_and_plain_one_cannot() -> None:
    points, target = xor()
    ic, plain = fit_neuron("ic", points, target), fit_neuron("plain", points, target)
    assert isinstance(ic.neuron, ICLinear)
    assert type(plain.neuron) is nn.Linear
    assert ic.accuracy == 1.0
    assert torch.equal(ic.classify(points), target > 0.5)
    assert plain.accuracy <= 0.75


def test_two_moons_is_no_easier_for_a_plain_neuron() -> None:
    points, target = two_moons()
    assert points.shape == (200, 2)
    assert target.unique().tolist() == [0.0, 1.0]
    fits = {kind: fit_neuron(kind, points, target, restarts=8) for kind in ("plain", "ic")}
    assert 0.8 < fits["plain"].accuracy <= fits["ic"].accuracy


def test_a_fit_is_repeatable_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (fit_neuron("ic", *xor(), restarts=4, steps=20) for _ in range(2))
    assert first.loss == second.loss
    assert torch.equal(torch.get_rng_state(), state)


def _is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 400 and len(set(picture.convert("RGB").getdata())) > 10


@pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")
def test_pictures(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    plot_boundaries(boundary_experiment(), tmp_path / "b.png")
    assert _is_picture(tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_neuron("cubic", *xor()), "'cubic'.*plain, ic"),
        (lambda: fit_neuron("ic", *xor(), restarts=0), "restarts is 0"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
