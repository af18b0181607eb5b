"""A network that was changed after it was made, or another one of the same keys: found when it is saved or loaded."""

import copy
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath, SelectAdaptivePool2d, freeze_batch_norm_2d
from torch import nn

from checkpoint.test_checkpoint import header
from icnets import CheckpointError, ICConfig, convert_, create_model, load, save
from icnets.convert.structure import structure_of

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(name: str = "test_resnet", **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **options).eval()


def replaced(model: nn.Module, old: type[nn.Module], new: Callable[[], nn.Module]) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, old):
            model.set_submodule(name, new())


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(X)
    return result


# What another call of timm's makes is written with that call, and what acts in training only is left to it.
COMES_BACK: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "reset_classifier": lambda m: m.reset_classifier(3),
    "reset_classifier with a pool": lambda m: m.reset_classifier(3, "max"),
    "no classifier": lambda m: m.reset_classifier(0),
    "another pool": lambda m: setattr(m, "global_pool", SelectAdaptivePool2d(pool_type="max", flatten=True)),
    "another linear head": lambda m: setattr(m, "fc", nn.Linear(m.num_features, 7)),
    "synchronised norms": nn.SyncBatchNorm.convert_sync_batchnorm,
    "gradient checkpointing": lambda m: m.set_grad_checkpointing(),
    "dropout": lambda m: setattr(m, "drop_rate", 0.3),
    "stochastic depth": lambda m: replaced(m, nn.Identity, lambda: DropPath(0.1)),
    "momentum": lambda m: [setattr(n, "momentum", 0.3) for n in m.modules() if isinstance(n, nn.BatchNorm2d)],
    "a note": lambda m: setattr(m, "run", "first"),
    "frozen": lambda m: m.requires_grad_(False),
    "a hook": lambda m: m.fc.register_forward_hook(lambda *args: None),
    "train() that keeps norms": lambda m: setattr(m, "train", functools.partial(type(m).train, m)),
}


@pytest.mark.parametrize("change", COMES_BACK.values(), ids=COMES_BACK)
def test_a_changed_network_that_a_call_makes_comes_back(change, tmp_path):
    model = made()
    change(model)
    save(model, tmp_path / "m.safetensors")  # a warning would be an error here
    assert torch.equal(outputs(load(tmp_path / "m.safetensors")), outputs(model))


def patched(model: Any) -> None:
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)


def patched_method(model: Any) -> None:
    model.forward_features = types.MethodType(lambda self, x: x.relu(), model)


def dilated(model: Any) -> None:
    model.layer1[0].conv1.dilation = model.layer1[0].conv1.padding = (2, 2)


OTHER: dict[str, tuple[Callable[[Any], Any], str]] = {
    "activations": (lambda m: replaced(m, nn.ReLU, nn.GELU), r"act1 is GELU instead of ReLU"),
    "an activation taken out": (lambda m: setattr(m, "act1", nn.Identity()), r"act1 is Identity instead of ReLU"),
    "stride": (lambda m: setattr(m.maxpool, "stride", 1), r"maxpool has stride 1 instead of 2"),
    "dilation of a unit": (dilated, r"layer1.0.conv1 has dilation \(2, 2\) instead of \(1, 1\)"),
    "padding mode": (lambda m: setattr(m.layer1[0].conv1, "padding_mode", "circular"), "has padding_mode 'circular'"),
    "eps": (lambda m: setattr(m.bn1, "eps", 1e-2), r"bn1 has eps 0.01 instead of 1e-05"),
    "a head of layers": (lambda m: setattr(m, "fc", nn.Sequential(m.fc)), r"fc is Sequential instead of Linear"),
    "frozen norms": (freeze_batch_norm_2d, r"bn1 is FrozenBatchNorm2d instead of BatchNorm"),
    "a new layer": (lambda m: m.layer1.append(nn.Conv2d(32, 32, 1)), r"layer1 has parts .* layer1.1 is new"),
    "a layer less": (lambda m: delattr(m, "act1"), r"act1 is missing"),
    "forward": (patched, r"the network has forward\(\) a function instead of its own"),
    "a method": (patched_method, r"the network has forward_features\(\)"),
}


@pytest.mark.parametrize(("change", "message"), OTHER.values(), ids=OTHER)
def test_a_network_that_no_call_makes_is_written_without_one(change, message, tmp_path):
    path, model = tmp_path / "m.safetensors", made()
    change(model)
    with pytest.warns(
        UserWarning, match=rf"isn't what timm.create_model made any more \(.*{message}.* load will need it"
    ):
        save(model, path)
    with pytest.raises(CheckpointError, match=rf"doesn't say how to make its network: .*{message}.*pass the basic one"):
        load(path)
    if "forward" in message or "act1" not in vars(model)["_modules"]:
        return
    same = timm.create_model("test_resnet", num_classes=5)
    change(same)
    assert torch.equal(outputs(load(path, same)), outputs(model))


def test_a_call_that_makes_another_network_is_refused(tmp_path):
    model = torchvision.models.get_model("squeezenet1_1", num_classes=3)
    convert_(model)
    for args, message in {
        ("squeezenet1_0", 3): r"features\.0 has kernel_size \(3, 3\) instead of \(7, 7\)",
        ("squeezenet1_1", 1000): r"classifier\.1 has out_channels 3 instead of 1000",
        ("squeezenet9", 3): r"the call fails: Unknown model squeezenet9",
    }.items():
        given = {
            "factory": "torchvision.models.get_model",
            "args": dict(zip(("name", "num_classes"), args, strict=True)),
        }
        with pytest.raises(ValueError, match=rf"architecture says .*isn't what that makes: {message}"):
            save(model, tmp_path / "m.safetensors", architecture=given)
    assert not list(tmp_path.iterdir())
    assert "icnets_architecture" not in vars(model)


def test_weights_with_more_classes_than_the_name_says_come_back(tmp_path):
    model = create_model("resnet18.fb_swsl_ig1b_ft_in1k", ic=None, channels=[8, 8, 16, 16])  # its tag goes
    model.reset_classifier(21)
    convert_(model)
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").fc.out_features == 21


def test_saving_leaves_random_numbers_alone_and_asks_once(tmp_path):
    model = made()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(1), expected)


# Networks of one's own.


def own() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ELU()))


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Net(nn.Module):
    def __init__(self, act: Any = F.relu, **notes: Any) -> None:
        super().__init__()
        self.conv, self.act, self.steps, self.name = nn.Conv2d(3, 4, 3), act, 0, "net"
        self.__dict__.update(notes)

    def forward(self, x):
        self.steps += 1
        return self.act(self.conv(x))


class Renamed(Net):
    pass


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (own, lambda m: m.__setitem__(2, nn.GELU()), "2 is GELU instead of ReLU"),
        (own, lambda m: m.__setitem__(2, Swish()), "2 is Swish instead of ReLU"),
        (own, lambda m: setattr(m[3][1], "alpha", 0.5), "3.1 has alpha 0.5 instead of 1"),
        (own, lambda m: setattr(m[0], "stride", (2, 2)), r"0 has stride \(2, 2\) instead of \(1, 1\)"),
        (own, lambda m: m.append(nn.ReLU()), "the network has parts"),
        (Net, lambda m: setattr(m, "act", F.gelu), "the network has act gelu instead of relu"),
        (Net, lambda m: setattr(m, "forward", lambda x: x), r"forward\(\) a function instead of its own"),
    ],
)
def test_the_same_keys_in_another_network_are_refused(make, change, message, tmp_path):
    model, other = make(), make()
    convert_(model)
    save(model, tmp_path / "m.safetensors")
    change(other)
    before, kinds = copy.deepcopy(other.state_dict()), [type(m) for m in other.modules()]
    with pytest.raises(CheckpointError, match=f"is of another network: in the model, .*{message}"):
        load(tmp_path / "m.safetensors", other)
    assert [type(m) for m in other.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize("make", [Renamed, lambda: Net(steps=7, name="second"), lambda: Net(started="today")])
def test_counters_notes_and_names_of_own_classes_do_not_count(make, tmp_path):
    save(Net(), tmp_path / "m.safetensors")
    load(tmp_path / "m.safetensors", make())


def test_a_difference_between_versions_of_a_library_warns(tmp_path, monkeypatch):
    path, model = tmp_path / "m.safetensors", made()
    save(model, path)
    header(path, structure={**structure_of(model), "": {"": "timm.ResNetV0"}})
    with pytest.raises(
        CheckpointError, match="of another network: in the model, the network is ResNet instead of ResNetV"
    ):
        load(path)
    monkeypatch.setattr(timm, "__version__", "99.0")
    with pytest.warns(UserWarning, match=r"was written with timm .*, here 99\.0; in the model, the network is ResNet "):
        assert torch.equal(outputs(load(path)), outputs(model))
    replaced(model, nn.ReLU, nn.GELU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(model, path)
    monkeypatch.setattr(timm, "__version__", "100.0")
    with pytest.raises(
        CheckpointError, match="act1 is ReLU instead of GELU"
    ):  # of torch's own classes no version does that
        load(path, made(ic=None))


def test_older_files_have_no_structure(tmp_path):
    model = own()
    convert_(model, ICConfig(warm_start="gain"))
    save(model, tmp_path / "m.safetensors")
    header(tmp_path / "m.safetensors", structure={}, versions={})
    load(tmp_path / "m.safetensors", own())
