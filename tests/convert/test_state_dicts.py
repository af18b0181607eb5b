import pytest
import torch
from torch import nn

from icnets.convert.state_dicts import mismatch, shapes


class Counting(nn.Module):
    def get_extra_state(self):
        return {"calls": 3}


def network(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), *more)


def test_equal_networks_have_no_mismatch():
    assert mismatch(shapes(network(Counting()).state_dict()), shapes(network(Counting()).state_dict())) is None


def test_every_kind_is_listed_with_its_first_names():
    found = network(nn.Linear(3, 1)).state_dict()
    found["0.weight"], found["1.num_batches_tracked"] = torch.zeros(3, 4), torch.zeros(1)
    assert mismatch(shapes(network(nn.ReLU(), nn.BatchNorm1d(3)).state_dict()), shapes(found)) == (
        "it lacks 3.bias, 3.num_batches_tracked, 3.running_mean and 2 more; "
        "it has the unknown 2.bias, 2.weight; "
        "it has the wrong shape of 0.weight (3, 4) instead of (3, 2), 1.num_batches_tracked (1,) instead of ()"
    )


@pytest.mark.parametrize("expected", [True, False])
def test_extra_state_has_no_shape_but_must_be_there(expected):
    with_state, without = shapes(network(Counting()).state_dict()), shapes(network().state_dict())
    if expected:
        assert mismatch(with_state, without) == "it lacks 2._extra_state"
    else:
        assert mismatch(without, with_state) == "it has the unknown 2._extra_state"
