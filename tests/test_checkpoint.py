import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import icnets
from icnets import CheckpointError, ICConfig, ICConv2d, convert_, load, save


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())


def trained(config: ICConfig | None = None) -> nn.Sequential:
    model = network()
    convert_(model, config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model.eval()


@pytest.mark.parametrize(
    "config", [ICConfig(), ICConfig(layers="kxk", warm_start="gain"), ICConfig(inner_bias=False, scale="mean")]
)
def test_load_repeats_the_surgery(tmp_path, config):
    model, x = trained(config), torch.randn(2, 3, 6, 6)
    save(model, tmp_path / "m.safetensors", metadata={"note": "mine"})
    again = load(tmp_path / "m.safetensors", model=network())
    assert not again.training
    assert torch.equal(again(x), model(x))
    assert again[0].collision_scale == config.scale
    assert [type(a) for a in again] == [type(a) for a in model]


@pytest.mark.parametrize("name", ["ic_resnet18", "resnet18"])
def test_load_makes_a_timm_network_by_itself(tmp_path, name):
    ic = ICConfig() if name.startswith("ic_") else None
    model = icnets.create_model(name, ic=ic, num_classes=5, in_chans=1, channels=(8, 8, 16, 16)).eval()
    save(model, tmp_path / "m.safetensors")
    again, x = load(tmp_path / "m.safetensors"), torch.randn(1, 1, 64, 64)
    assert isinstance(again.conv1, ICConv2d) == (ic is not None)
    assert torch.equal(again(x), model(x))
    save(again, tmp_path / "again.safetensors")  # and the copy knows its architecture too
    assert torch.equal(load(tmp_path / "again.safetensors")(x), model(x))


def test_load_makes_a_torchvision_network_by_itself(tmp_path):
    import torchvision

    model = torchvision.models.get_model("squeezenet1_1", num_classes=3).eval()
    convert_(model)
    architecture = {"factory": "torchvision.models.get_model", "args": {"name": "squeezenet1_1", "num_classes": 3}}
    save(model, tmp_path / "m.safetensors", architecture=architecture)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(tmp_path / "m.safetensors")(x), model(x))


def test_shared_units(tmp_path):
    def make():
        model = network()
        model.append(nn.Unflatten(1, (2, -1)))
        model.append(nn.Conv1d(2, 2, 1))
        model.append(model[-1])
        return model

    model, x = make(), torch.randn(2, 3, 6, 6)
    convert_(model)
    save(model.eval(), tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", make())
    assert again[-1] is again[-2]
    assert torch.equal(again(x), model(x))


def test_tied_and_non_contiguous_tensors(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    model[1].weight = model[0].weight
    convert_(model)
    model.to(memory_format=torch.channels_last)
    save(model, tmp_path / "m.safetensors")
    twin = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    twin[1].weight = twin[0].weight
    again, x = load(tmp_path / "m.safetensors", twin), torch.randn(1, 4, 7, 7)
    assert again[0].weight is again[1].weight
    torch.testing.assert_close(again(x), model.eval()(x))


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(trained(), path)
    before = path.read_bytes()

    def broken(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("icnets.checkpoint.save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        save(trained(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_save_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist; create it first"):
        save(trained(), tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(ValueError, match=r"factory is 'os.system'; it must be one of timm.create_model"):
        save(trained(), tmp_path / "m", architecture={"factory": "os.system", "args": {}})
    with pytest.raises(ValueError, match="must be plain data"):
        save(trained(), tmp_path / "m", architecture={"factory": "timm.create_model", "args": {"norm": nn.ReLU}})
    deployed = trained()
    icnets.fuse_(deployed, torch.randn(1, 3, 6, 6))
    with pytest.raises(TypeError, match="the model is deployed"):
        save(deployed, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def header(path, **changes):
    """Rewrites the icnets header of a checkpoint."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        old = json.loads(file.metadata()["icnets"])
    save_file(load_file(path), path, {"icnets": json.dumps({**old, "checksum": None, **changes})})


def damage(path, kind):
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "pickle":
        torch.save({"w": torch.zeros(3)}, path)
    elif kind == "missing":
        path.unlink()
    elif kind == "foreign":
        save_file(load_file(path), path)
    elif kind == "header":
        save_file(load_file(path), path, {"icnets": '{"version": 1'})
    elif kind == "fields":
        header(path, layers={"0": {"scale": "sqrt"}})
    elif kind == "version":
        header(path, version=9)
    elif kind == "factory":
        header(path, architecture={"factory": "os.system", "args": {"command": "true"}})
    elif kind == "arguments":
        header(path, architecture={"factory": "timm.create_model", "args": {"model_name": "resnet1"}})
    elif kind == "flipped":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 64]) + data[-2:])
    elif kind == "note":
        path.write_bytes(data.replace(b"mine", b"mime"))
    elif kind == "option":
        path.write_bytes(data.replace(rb"\"scale\": \"sqrt\"", rb"\"scale\": \"mean\"", 1))
    elif kind == "unknown":
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is not a whole safetensors file"),
        ("empty", "is not a whole safetensors file"),
        ("text", "is not a whole safetensors file"),
        ("pickle", "is not a whole safetensors file"),
        ("missing", "there is no checkpoint"),
        ("foreign", "was not written by icnets.save; load a basic network's weights with load_basic_state_dict"),
        ("header", "has a damaged icnets header"),
        ("fields", "has a damaged icnets header"),
        ("version", "has format version 9; this icnets reads version 1: upgrade icnets"),
        ("factory", "names the factory 'os.system'; only timm.create_model"),
        ("arguments", "asks timm.create_model for .*, which fails: Unknown model"),
        ("flipped", "is damaged: its checksum differs; write it again with icnets.save"),
        ("note", "is damaged: its checksum differs"),
        ("option", "is damaged: its checksum differs"),
        ("unknown", r"doesn't say how to make its network; pass the basic one: load\(path, model=...\)"),
    ],
)
def test_bad_files_are_clear_errors(tmp_path, kind, message):
    path = tmp_path / "m.safetensors"
    save(trained(), path, metadata={"note": "mine"})
    damage(path, kind)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value).strip()


def test_a_file_without_checksum_and_notes_of_any_name_are_read(tmp_path):
    model = trained()
    save(model, tmp_path / "m.safetensors", metadata={"format": "mine", "icnets": "mine"})
    load(tmp_path / "m.safetensors", model=network())
    header(tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors", model=network())[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(3), "has an IC unit at '3', where the model has a Flatten"),
        (lambda m: m.append(nn.Linear(2, 2)), "lacks 5.bias, 5.weight"),
        (
            lambda m: m.__setitem__(1, nn.Identity()),
            "has the unknown 1.bias, 1.num_batches_tracked, 1.running_mean and 2",
        ),
        (lambda m: m.__setitem__(3, nn.Conv2d(4, 7, 1)), "has the wrong shape of 3.bias"),
        (lambda m: convert_(m, ICConfig(scale="sum")), "pass a basic network"),
    ],
)
def test_a_model_that_does_not_fit_is_left_unchanged(tmp_path, change, message):
    save(trained(), tmp_path / "m.safetensors")
    other = network()
    change(other)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.safetensors", model=other)
    assert other.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_module_that_asks_for_its_version_loads(tmp_path):
    # torchvision's MNASNet refuses a state dict that doesn't say of which version it is; a file of tensors can't.
    class Versioned(nn.Conv2d):
        _version = 3

        def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
            assert metadata.get("version") == 3
            super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    basic = Versioned(2, 3, 1)
    model = copy.deepcopy(basic)
    icnets.convert_(model)
    icnets.save(model, tmp_path / "ic.safetensors")
    loaded = icnets.load(tmp_path / "ic.safetensors", copy.deepcopy(basic))
    assert torch.equal(loaded.weight, model.weight)
    icnets.load_basic_state_dict(model, basic.state_dict())
