import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

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

    monkeypatch.setattr("icnets.checkpoint.safetensors_file.save_file", broken)
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
        ("empty", "is empty; fetch or write it again"),
        ("text", "isn't a file of weights, but perhaps a web page"),
        ("pickle", "is a pickle of torch.save, not a checkpoint of icnets.save; icnets convert makes one of it"),
        ("missing", "there is no checkpoint"),
        ("foreign", "was not written by icnets.save; basic weights go in by load_basic_state_dict"),
        ("header", "has a damaged icnets header"),
        ("version", "has format version 9, this icnets reads 1: upgrade icnets"),
        ("factory", "names the factory 'os.system'; only timm.create_model"),
        ("arguments", "asks timm.create_model for .*, which fails: Unknown model"),
        ("flipped", "is damaged: its checksum differs; write it again with icnets.save"),
        ("note", "is damaged: its checksum differs"),
        ("option", "is damaged: its checksum differs"),
        ("unknown", r"doesn't say how to make its network; pass the basic one, load\(path, model\)"),
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


# What was around the network, and what a state dict comes from.


def wrapped_by_fabric(model):
    import lightning as L

    return L.Fabric(accelerator="cpu", devices=1).setup(model)


WRAPPERS = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
    "Fabric": wrapped_by_fabric,
    "several": lambda m: AveragedModel(nn.DataParallel(torch.compile(m, backend="eager"))),
    "a compiled part": lambda m: m.__setitem__(3, torch.compile(m[3], backend="eager")) or m,
    "a checkpointed part": lambda m: m.__setitem__(0, checkpoint_wrapper(m[0])) or m,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_networks_are_written_without_the_wrapper(wrap, tmp_path):
    model, x = trained(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    save(wrap(model), tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors", network())(x), expected)


@pytest.mark.parametrize(
    "rename",
    [
        lambda m: AveragedModel(m).state_dict(),
        lambda m: nn.DataParallel(m).state_dict(),
        lambda m: torch.compile(nn.DataParallel(m), backend="eager").state_dict(),
        lambda m: {f"module._orig_mod.{key}": value for key, value in m.state_dict().items()},
    ],
)
def test_a_state_of_a_wrapper_is_written_under_the_networks_names(rename, tmp_path):
    model, x = trained(), torch.randn(2, 3, 6, 6)
    save(network_of(model), tmp_path / "m.safetensors", state=rename(model))
    assert torch.equal(load(tmp_path / "m.safetensors", network())(x), model(x))


def network_of(model):
    """The same network without its weights, as where they are gathered from many processes."""
    return copy.deepcopy(model).to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {k: v for k, v in s.items() if "running" not in k},
            r"it lacks 1\.running_mean, 1\.running_var",
        ),
        (lambda s: {f"net.{k}": v for k, v in s.items()}, r"it lacks .*; it has the unknown net\.0\.bias"),
        (lambda s: {**s, "0.weight": torch.ones(2)}, r"it has the wrong shape of 0\.weight \(2,\)"),
        (lambda s: {k: v for k, v in s.items() if "collision" not in k}, r"it lacks 0\.collision, 3\.collision"),
        (lambda s: {}, "it lacks 0.bias"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_when_it_is_written(change, message, tmp_path):
    model = trained()
    with pytest.raises(ValueError, match=f"state doesn't fit the model: {message}"):
        save(model, tmp_path / "m.safetensors", state=change(model.state_dict()))
    assert not list(tmp_path.iterdir())


class Buffer(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("a", value)


class Half(torch.Tensor):
    """A tensor that holds another, as those of quantising libraries do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(func(*[a.inner if isinstance(a, Half) else a for a in args], **(kwargs or {})))


class Plain(torch.Tensor):
    pass


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def pruned_vector():
    model = trained()
    prune.l1_unstructured(model[0], "collision", 0.5)
    return model


def parametrised_vector():
    model = trained()
    parametrize.register_parametrization(model[3], "inner_bias", Twice())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: trained().to("meta"),
            r"'0\.weight' is on the meta device and has no values; load the weights first",
        ),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta")), r"'1\.weight' is on the meta device"),
        (lambda: nn.LazyLinear(2), "'weight' has no shape yet; run one batch through the model first"),
        (lambda: Buffer(Half(torch.ones(2))), r"'a' is a Half .*which safetensors can't hold; .*\.dequantize\(\)"),
        (lambda: Buffer(torch.eye(2).to_sparse()), r"'a' is .*torch\.sparse_coo, .*\.to_dense\(\)"),
        (lambda: Buffer(torch.ones(1, dtype=torch.complex128)), r"'a' is .*torch\.complex128, .*complex64"),
        (pruned_vector, r"the collision of '0' is pruned or parametrised: make it permanent"),
        (parametrised_vector, r"the collision of '3' is pruned or parametrised: make it permanent"),
        (lambda: trained().state_dict(), "model is a OrderedDict; save takes the network"),
    ],
)
def test_what_would_not_come_back_is_refused_when_it_is_written(make, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save(make(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_tensors_in_other_clothes_come_back(tmp_path):
    for value in (
        torch.tensor([1 + 2j]).conj(),
        torch.ones(2).as_subclass(Plain),
        torch.ones(2).to(torch.float8_e4m3fn),
    ):
        save(Buffer(value), tmp_path / "m.safetensors")
        again = load(tmp_path / "m.safetensors", Buffer(torch.zeros(value.shape, dtype=value.dtype)))
        assert type(again.a) is torch.Tensor
        assert torch.equal(again.a.to(torch.complex64), value.as_subclass(torch.Tensor).to(torch.complex64))


def test_pruned_and_parametrised_weights_come_back_in_a_network_that_has_them(tmp_path):
    def make():
        model = network()
        prune.l1_unstructured(model[0], "weight", 0.5)
        nn.utils.parametrizations.weight_norm(model[3])
        return model

    model, x = make(), torch.randn(2, 3, 6, 6)
    convert_(model)
    with torch.no_grad():
        model[0].collision.normal_()
    save(model.eval(), tmp_path / "m.safetensors")
    torch.testing.assert_close(load(tmp_path / "m.safetensors", make())(x), model(x))
    with pytest.raises(CheckpointError, match=r"has the unknown 0\.weight_mask, 0\.weight_orig"):
        load(tmp_path / "m.safetensors", network())


# What is refused when it is loaded, and what a failure leaves.


class Late(nn.Conv2d):
    """Fails when everything else is loaded."""

    error = None

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        if Late.error is not None:
            raise Late.error


def late():
    model = network()
    model[3].__class__ = Late
    return model


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}, [type(m) for m in model.modules()]


def unchanged(model, before):
    values, kinds = before
    now = model.state_dict()
    alike = now.keys() == values.keys() and kinds == [type(m) for m in model.modules()]
    return alike and all(torch.equal(now[key], value) for key, value in values.items())


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), torch.cuda.OutOfMemoryError("full"), ValueError("mine")], ids=repr
)
def test_a_load_that_fails_late_leaves_everything_as_it_was(error, tmp_path, monkeypatch):
    model = late()
    convert_(model)
    save(model, tmp_path / "m.safetensors")
    other = late().train()
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    before = snapshot(other)
    monkeypatch.setattr(Late, "error", error)
    with pytest.raises(type(error)):
        load(tmp_path / "m.safetensors", other, optimizers=[optimizer])
    assert unchanged(other, before)
    assert other.training
    assert len(optimizer.param_groups) == 1
    before = snapshot(model)
    with pytest.raises(type(error)):
        icnets.load_basic_state_dict(model, network().state_dict())
    assert unchanged(model, before)


def test_optimizers_that_exist_are_extended_or_refused(tmp_path):
    save(trained(), tmp_path / "m.safetensors")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"an optimizer that trains this model .* pass it as optimizers=\[\.\.\.\]"):
        load(tmp_path / "m.safetensors", model)
    with pytest.raises(TypeError, match=r"optimizers is a SGD; pass a list"):
        load(tmp_path / "m.safetensors", model, optimizers=optimizer)
    assert unchanged(model, before)
    load(tmp_path / "m.safetensors", model, optimizers=[optimizer])
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 4]
    assert optimizer.param_groups[1]["weight_decay"] == 0
    load(tmp_path / "m.safetensors", model)  # nothing new this time
    load(tmp_path / "m.safetensors", network())


@pytest.mark.parametrize(
    ("wrap", "error", "message"),
    [
        (lambda m: torch.compile(m, backend="eager"), TypeError, "the model is compiled .* load into it first"),
        (nn.DataParallel, TypeError, r"the model is wrapped by DataParallel; load into its \.module first"),
        (lambda m: m.compile(backend="eager") or m, TypeError, "the model is compiled .* load into it first"),
        (lambda m: torch.fx.symbolic_trace(m), TypeError, "holds a traced graph"),
        (
            lambda m: m.to("meta"),
            CheckpointError,
            r"0\.weight of the model is on the meta device; call model\.to_empty",
        ),
        (lambda m: type(m), TypeError, "model is a type; load takes the basic network"),
        (
            lambda m: setattr(m[0], "forward", lambda x: x) or m,
            CheckpointError,
            "its forward was replaced on the instance",
        ),
    ],
)
def test_what_can_not_be_converted_is_not_loaded_into(wrap, error, message, tmp_path):
    save(trained(), tmp_path / "m.safetensors")
    with pytest.raises(error, match=message):
        load(tmp_path / "m.safetensors", wrap(network()))


def test_a_compiled_ic_network_is_loaded_into(tmp_path):
    model, other = trained(), trained()
    save(model, tmp_path / "m.safetensors")
    other.compile(backend="eager")
    assert torch.equal(load(tmp_path / "m.safetensors", other)[0].collision, model[0].collision)


def test_basic_weights_into_what_can_not_take_them():
    state = network().state_dict()
    for wrap, error, message in (
        (nn.DataParallel, TypeError, r"wrapped by DataParallel; load into its \.module first"),
        (lambda m: torch.compile(m, backend="eager"), TypeError, "is compiled"),
        (lambda m: m.to("meta"), ValueError, r"is on the meta device; call model\.to_empty"),
    ):
        with pytest.raises(error, match=message):
            icnets.load_basic_state_dict(wrap(trained()), state)
    model = trained()
    before = snapshot(model)
    for dtype in (torch.int8, torch.complex64, torch.bool):
        with pytest.raises(ValueError, match=r"it has the wrong type of 0\.bias torch"):
            icnets.load_basic_state_dict(model, {key: value.to(dtype) for key, value in state.items()})
    assert unchanged(model, before)


def test_shared_tensors_can_not_have_two_values(tmp_path):
    save(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / "m.safetensors")
    shared = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"different values for 0\.weight and 1\.weight, which the model shares"):
        load(tmp_path / "m.safetensors", nn.Sequential(shared, shared))


def test_whole_numbers_are_no_weights(tmp_path):
    save(Buffer(torch.ones(2, dtype=torch.int8)), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"it has the wrong type of a torch\.int8 instead of torch\.float32"):
        load(tmp_path / "m.safetensors", Buffer(torch.zeros(2)))


def test_an_optimizer_state_of_before_a_conversion(tmp_path):
    """It fits the optimizer that convert_ extends, and torch refuses it for one that is built anew."""
    model, x = network(), torch.randn(2, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    resumed = network()
    resumed.load_state_dict(weights)
    again = torch.optim.SGD(resumed.parameters(), 0.1, momentum=0.9)
    again.load_state_dict(state)
    convert_(resumed, optimizers=[again])
    momentum = again.state[resumed[0].weight]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state[model[0].weight]["momentum_buffer"])
    with pytest.raises(ValueError, match="group that doesn't match the size"):
        torch.optim.SGD(resumed.parameters(), 0.1, momentum=0.9).load_state_dict(state)
