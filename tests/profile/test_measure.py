import pytest
import timm
import torch
from torch import nn

from icnets import ICConfig, ICConv2d, ICLinear, convert_
from icnets.profile.measure import (
    agreement,
    count_macs,
    count_parameters,
    measure_latency,
    memory_for_backward,
)


def test_macs_of_a_convolution_by_hand() -> None:
    x = torch.randn(2, 6, 9, 9)
    # 5 x 5 places of 8 channels, each 6 / 2 inputs of 3 x 3.
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    assert count_macs(conv, x).total == 5 * 5 * 8 * 3 * 9
    assert count_macs(conv, x).ic == 0


def test_macs_of_a_collision_by_hand() -> None:
    x = torch.randn(3, 6, 9, 9)
    found = count_macs(ICConv2d(6, 8, 3, stride=2, padding=1, groups=2), x)
    channel_sum, windows, collision = 6 * 9 * 9, 5 * 5 * 2 * 9, 2 * 5 * 5 * 8
    assert found.ic == channel_sum + windows + collision
    assert found.total - found.ic == 5 * 5 * 8 * 3 * 9
    linear = count_macs(ICLinear(10, 4), torch.randn(7, 10))
    assert (linear.total - linear.ic, linear.ic) == (40, 10 + 2 * 4)


def test_macs_of_transposed_convolution_by_hand() -> None:
    # Each of 4 x 4 x 6 inputs meets 3 x 3 weights of 8 / 2 outputs.
    assert count_macs(nn.ConvTranspose2d(6, 8, 3, groups=2), torch.randn(1, 6, 4, 4)).total == 4 * 4 * 6 * 4 * 9


def test_macs_of_resnet50_are_the_published() -> None:
    model = timm.create_model("resnet50")
    sample = torch.randn(1, 3, 224, 224)
    basic = count_macs(model, sample)
    assert 4.09e9 - 1e7 < basic.total < 4.12e9
    convert_(model, optimizers=())
    own = count_macs(model, sample)
    assert own.total - own.ic == basic.total
    # The design note: about 1 / C_out a layer, so well below 1 %.
    assert 0 < own.ic < 0.01 * basic.total


def test_counting_leaves_the_network_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, torch.randn(4, 1, 5, 5))
    memory_for_backward(model, torch.randn(4, 1, 5, 5))
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_parameters_and_the_part_of_ic() -> None:
    shared = ICConv2d(3, 4, 3, gain=0.0)
    model = nn.Sequential(shared, nn.Conv2d(4, 3, 1), shared)
    found = count_parameters(model)
    assert found.ic == 3 * 4
    assert found.total - found.ic == 4 * 3 * 9 + 4 + 3 * 4 + 3


def test_memory_for_backward_by_hand() -> None:
    x = torch.randn(5, 7)
    # The first layer keeps x, the second the rectified map, which relu keeps as well: one storage, counted once.
    model = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 2))
    assert memory_for_backward(model, x) == 4 * (5 * 7 + 5 * 11)


def test_memory_counts_what_a_view_keeps_alive() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear((x * 1)[:, :2])

    assert memory_for_backward(Head(), torch.randn(3, 50)) == 4 * 3 * 50


def test_latency_is_relative_to_the_first() -> None:
    small, large = nn.Linear(16, 16), nn.Sequential(*[nn.Linear(256, 256) for _ in range(12)])
    first = nn.Sequential(nn.Linear(256, 16), small)
    threads = torch.get_num_threads()
    for training in (False, True):
        found = measure_latency(
            {"small": first, "large": large}, torch.randn(64, 256), rounds=5, training=training, threads=1
        )
        assert found["small"].ratio == 1.0
        assert found["large"].ratio > 1.5
        assert found["large"].ratio_low <= found["large"].ratio <= found["large"].ratio_high
        assert found["large"].ms_per_image > 0
        assert found["large"].threads == 1
    assert torch.get_num_threads() == threads
    assert all(p.grad is None for p in first.parameters())


def test_agreement() -> None:
    class Fixed(nn.Module):
        def __init__(self, answers: list[int]) -> None:
            super().__init__()
            self.answers = torch.tensor(answers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(self.answers[x.long().squeeze(1)], 3).float()

    batches = [torch.tensor([[0.0], [1.0]]), (torch.tensor([[2.0]]), torch.tensor([0]))]
    assert agreement(Fixed([0, 1, 2]), Fixed([0, 1, 2]), batches) == 1.0
    assert agreement(Fixed([0, 1, 2]), Fixed([0, 2, 2]), batches) == pytest.approx(2 / 3)


def test_gain_warm_start_agrees_fully() -> None:
    options = {"num_classes": 5, "in_chans": 1, "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
    basic = timm.create_model("resnet10t", **options)
    warm = timm.create_model("resnet10t", **options)
    warm.load_state_dict(basic.state_dict())
    convert_(warm, ICConfig(warm_start="gain"), optimizers=())
    assert agreement(basic, warm, [torch.randn(32, 1, 32, 32)]) == 1.0


def test_what_a_dead_branch_saved_does_not_count() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.dead(x).exp()  # keeps its output until it is gone, at once
            return self.used(x).exp()

    x = torch.randn(64, 8)
    # The input, by the linear layer, and the output, by the exponential.
    assert memory_for_backward(Dead(), x) == 2 * 64 * 8 * 4
