from pathlib import Path

import pytest
import torch
from torch import nn

from icnets import ICConfig, convert_, ic_parameters, save
from icnets.checkpoint.weights_files import load_weights


def network(classes: int, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, classes))


@pytest.mark.parametrize("kind", ["plain", "basic", "ic"])
def test_only_the_last_layer_may_differ_and_stays_new(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, path = network(7), tmp_path / ("a.pth" if kind == "plain" else "a.safetensors")
    if kind == "ic":
        convert_(trained, ICConfig(warm_start="gain"))
    torch.save(trained.state_dict(), path) if kind == "plain" else save(trained, path)
    own = network(3)
    head, before = own[3], own[3].weight.clone()
    load_weights(own, path)
    assert own[3] is head
    assert torch.equal(head.weight, before)
    assert torch.equal(own[0].weight, trained[0].weight)
    assert (next(ic_parameters(own), None) is not None) == (kind == "ic")
    assert f"{path} is of 7 classes: the last layer, 3, is new" in caplog.text
    own = network(3)
    with pytest.raises(ValueError, match=r"wrong shape of 3\.bias"):
        load_weights(own, path, new_head=False)
    assert own[3].out_features == 3


def test_other_differences_are_none_of_the_last_layer(tmp_path: Path) -> None:
    torch.save(network(3, width=5).state_dict(), tmp_path / "a.pth")
    own = network(3)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with pytest.raises(ValueError, match=r"wrong shape of 0\.bias"):
        load_weights(own, tmp_path / "a.pth")
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
