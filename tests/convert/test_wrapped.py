"""Networks whose weights are spread over processes: nothing is loaded into a part of them."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from icnets import convert_, load, load_basic_state_dict, save


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_nothing_is_loaded_into_a_sharded_network(mesh, tmp_path):
    basic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = copy.deepcopy(basic)
    convert_(model)
    save(model, tmp_path / "ic.safetensors")
    fully_shard(model, mesh=mesh)
    before = {k: v.full_tensor() if hasattr(v, "full_tensor") else v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TypeError, match=r"^0.weight of the model is a sharded DTensor; load first, then shard"):
        load_basic_state_dict(model, basic.state_dict())
    with pytest.raises(TypeError, match=r"^0.weight of the model is a sharded DTensor"):
        load(tmp_path / "ic.safetensors", model)
    after = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_sharded_state_dict_is_refused(mesh):
    model, basic = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))
    convert_(model)
    fully_shard(basic, mesh=mesh)
    with pytest.raises(TypeError, match=r"^'0.weight' is a sharded DTensor; gather the weights"):
        load_basic_state_dict(model, basic.state_dict())
