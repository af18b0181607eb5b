import numpy as np
import pytest
import torch
from torch import nn

from studies.tensors import AugmentedImages, Splits, TensorData, cached


class Dots(TensorData):
    """Forty grey images of bytes, each with one bright dot in the half that is its class."""

    def splits(self) -> Splits:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(40) % 2
        x = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
        rows = torch.randint(0, 8, (40,), generator=generator)
        x[torch.arange(40), 0, rows, 2 + 4 * y] = 255
        return Splits((x[:20], y[:20]), (x[20:30], y[20:30]), (x[30:], y[30:]), ["left", "right"])


def _ready(**options) -> Dots:
    data = Dots(batch_size=10, eval_batch_size=4, **options)
    data.setup()
    return data


def test_training_images_have_mean_0_and_deviation_1() -> None:
    data = _ready()
    x = torch.cat([x for x, _ in data.train_dataloader()])
    assert x.shape == (20, 1, 8, 8)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert [len(x) for x, _ in data.test_dataloader()] == [4, 4, 2]
    assert (data.num_classes, data.in_chans, data.class_names) == (2, 1, ["left", "right"])
    assert [data.size(split) for split in ("train", "val", "test")] == [20, 10, 10]


@pytest.mark.parametrize(
    "options", [{}, {"shift": 1, "hflip": True}, {"randaugment": 9, "shift": 1}, {"mixup": 0.4, "mix_smoothing": 0.1}]
)
def test_the_seed_decides_and_nothing_else_does(options: dict) -> None:
    torch.manual_seed(1)
    first = list(_ready(seed=3, **options).train_dataloader())
    torch.manual_seed(2)
    again = list(_ready(seed=3, **options).train_dataloader())
    other = list(_ready(seed=4, **options).train_dataloader())
    assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))


def test_epochs_differ() -> None:
    data = _ready(shift=2, vflip=True)
    first, second = (torch.cat([x for x, _ in data.train_dataloader()]) for _ in range(2))
    assert not torch.equal(first, second)


def test_what_a_shift_moves_in_is_black() -> None:
    data = _ready(shift=3)
    black = -data.mean[0] / data.std[0]
    for x, _ in data.train_dataloader():
        assert x.amin(dim=(1, 2, 3)).tolist() == pytest.approx([black] * len(x), rel=1e-5)


def test_randaugment_sees_bytes_and_the_network_normalised_images() -> None:
    x, _ = next(iter(_ready(randaugment=9).train_dataloader()))
    assert x.dtype == torch.float32
    assert x.min() < 0 < x.max()


def test_flips_flip_about_half_of_the_images_each_along_its_axis() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(400, 1, 2, 2)
    read = AugmentedImages(x, [0] * 400, flips=(-1,), seed=5).read(0, list(range(400)))
    flipped = (read == x[:1].flip(-1)).flatten(1).all(1)
    kept = (read == x[:1]).flatten(1).all(1)
    assert bool((flipped ^ kept).all())
    assert 150 < int(flipped.sum()) < 250


def test_mixed_targets_are_probabilities() -> None:
    _, target = next(iter(_ready(mixup=1.0, mix_smoothing=0.2).train_dataloader()))
    assert target.shape == (10, 2)
    assert target.sum(1).tolist() == pytest.approx([1.0] * 10, abs=1e-5)
    assert target.min().item() >= 0.1 - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 21}, "batch_size is 21, but there are 20"),
        ({"randaugment": 31}, "randaugment is 31"),
        ({"batch_size": 5, "mixup": 0.5}, "make it even"),
        ({"mixup": -1.0}, "mixup is -1"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dots(**{"batch_size": 10, **options}).setup()


def test_signals_cannot_be_shifted() -> None:
    class Signals(TensorData):
        def splits(self) -> Splits:
            part = (torch.randn(4, 1, 10), torch.tensor([0, 1, 0, 1]))
            return Splits(part, part, part, ["a", "b"])

    with pytest.raises(ValueError, match=r"are for images; these are \(1, 10\)"):
        Signals(batch_size=2, shift=1).setup()
    data = Signals(batch_size=2)
    data.setup()
    assert nn.Conv1d(1, 1, 3)(next(iter(data.train_dataloader()))[0]).shape == (2, 1, 8)


def test_cache(tmp_path) -> None:
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        assert cached(tmp_path / "new", "numbers", make)["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["numbers.npz"]
    cached(None, "numbers", make)
    assert len(calls) == 2
