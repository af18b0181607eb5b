import pytest
import torch
from torch import nn

from networks import build
from training_step import TrainingStep


class _Classifier(nn.Sequential):
    num_classes = 10


def test_a_step_trains_every_parameter(tiny):
    step = TrainingStep(build(tiny, "ic-all"), torch.randn(2, 3, 32, 32))
    before = step.loss().item()
    for group in step.optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(5):
        step()
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert len(momenta) == len(list(step.model.parameters()))
    assert all(m.any() for m in momenta)
    assert all(p.grad is None for p in step.model.parameters())
    assert step.loss().item() < before


def test_memory_of_a_linear_layer_and_sigmoid_by_hand():
    x = torch.randn(50, 2000)
    found = TrainingStep(_Classifier(nn.Linear(2000, 10, bias=False), nn.Sigmoid()), x).memory()
    weight, activation = 4 * 2000 * 10, 4 * 50 * 10
    # The input and the sigmoid's output; then log-probabilities and two scalars of the loss.
    assert found.saved == 4 * x.numel() + activation
    assert 2 * activation <= found.held < 4 * activation
    # Weight and momentum last, gradient and weight decay's sum come and go.
    lasting = 2 * weight + 4 * x.numel() + 8 * 50
    assert lasting + weight + found.held < found.peak <= lasting + 2 * weight + 6 * activation


def test_more_activations_take_more(tiny):
    basic, deeper = (TrainingStep(build(tiny, v), torch.randn(4, 3, 32, 32)).memory() for v in ("basic", "deeper"))
    assert basic.saved < deeper.saved
    assert basic.held < deeper.held
    assert basic.peak < deeper.peak


def test_what_the_graph_keeps_by_itself_is_held():
    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = torch.zeros(1 << 20, dtype=torch.uint8)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Keeper(nn.Linear):
        num_classes = 10

        def forward(self, x):
            return Keep.apply(super().forward(x))

    found = TrainingStep(Keeper(20, 10), torch.randn(5, 20)).memory()
    assert found.saved < 1 << 20
    assert (1 << 20) < found.held == pytest.approx(1 << 20, rel=0.01)
