"""One contract for every registered network; timm's own test file asks the rest."""

import copy
import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import icnets
import icnets.timm_models
from icnets import ICConfig, ICConv2d, convert_, ic_parameters, revert_
from icnets.open_network import make_network

NETWORKS = icnets.timm_models.NETWORKS

BASIC = {
    name: lambda name=name: timm.create_model(name, num_classes=10)
    for name in ("mobilenetv2_100", "convnext_tiny", "efficientnet_b0", "vgg16_bn")
}
BASIC["torchvision resnet50"] = lambda: torchvision.models.get_model("resnet50", num_classes=10)


def shake(model: nn.Module) -> nn.Module:
    """Batch norms as after training, some weights negative, so that no term is zero by initialisation."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.weight, mean=0.7, std=0.5)
            nn.init.normal_(m.bias, std=0.2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", BASIC)
def test_gain_keeps_the_function_and_every_new_parameter_learns(name):
    basic = shake(BASIC[name]()).eval()
    model = copy.deepcopy(basic)
    report = convert_(model, ICConfig(warm_start="gain"))
    assert len(report.converted) == sum(isinstance(m, nn.Conv2d) for m in basic.modules())
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        y, z = basic(x), model(x)
    assert (z - y).abs().max() <= 1e-5 * y.abs().max()

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    start = {n: p.detach().clone() for n, p in ic_parameters(model)}
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        if step == 0:
            optimizer.step()
    still = [n for n, p in ic_parameters(model) if torch.equal(p, start[n]) and not p.grad.any()]
    assert not still
    assert all(p.grad.isfinite().all() for p in model.parameters())


# Of each family, whose other networks come from the same table; benchmarks/coverage converts them all.
FIRST = [f"ic_{names.split()[0]}" for names in icnets.timm_models.FAMILIES.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_registered_networks(name):
    with torch.device("meta"):
        basic = timm.create_model(NETWORKS[name])
        model = timm.create_model(name)
    convs = [n for n, m in basic.named_modules() if isinstance(m, nn.Conv2d)]
    assert convs == [n for n, m in model.named_modules() if isinstance(m, ICConv2d)]
    assert set(model.state_dict()) - set(basic.state_dict()) == {n for n, _ in ic_parameters(model)}
    assert not set(basic.state_dict()) - set(model.state_dict())
    assert model.pretrained_cfg["architecture"] == name
    assert timm.models.get_pretrained_cfg(name).input_size == timm.models.get_pretrained_cfg(NETWORKS[name]).input_size
    assert name in timm.list_models("ic_*")
    tags = [n.removeprefix(name) for n in timm.list_models(f"{name}.*", pretrained=True)]
    assert tags == [n.removeprefix(NETWORKS[name]) for n in timm.list_models(f"{NETWORKS[name]}.*", pretrained=True)]


def test_behaves_as_any_timm_model():
    features = timm.create_model("ic_resnet18", num_classes=10, in_chans=1, features_only=True, out_indices=(1, 3))
    maps = features(torch.randn(1, 1, 64, 64))
    assert [m.shape[1] for m in maps] == features.feature_info.channels() == [64, 256]
    model = timm.create_model("ic_resnet18", num_classes=7, drop_rate=0.1, ic=ICConfig(layers="kxk"))
    assert type(model.layer2[0].downsample[0]) is nn.Conv2d
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    final, maps = model.forward_intermediates(torch.randn(1, 3, 64, 64))
    assert len(maps) == 5
    assert final.shape[1] == 512


@pytest.mark.parametrize("through", ["timm", "icnets", "icnets, plain name"])
def test_pretrained_weights_are_the_basic_networks(tmp_path, through):
    basic = shake(timm.create_model("resnet18", num_classes=1000)).eval()
    path = tmp_path / "resnet18.safetensors"
    from safetensors.torch import save_file

    save_file(basic.state_dict(), path)
    name = "resnet18" if "plain" in through else "ic_resnet18"
    create = timm.create_model if through == "timm" else icnets.create_model
    model = create(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}).eval()
    x = torch.randn(2, 3, 64, 64)
    assert all(m.gain is not None for m in model.modules() if isinstance(m, ICConv2d))  # a warm start, by itself
    with torch.no_grad():
        assert torch.equal(model(x), basic(x))
    head = create(name, pretrained=True, num_classes=5, in_chans=1, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(head.layer1[0].conv1.weight, basic.layer1[0].conv1.weight)
    assert head.fc.weight.shape == (5, 512)


def test_create_model_converts_any_timm_network():
    model = icnets.create_model("lcnet_050", num_classes=4, ic=ICConfig(inner_bias=False))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)
    assert all(m.inner_bias is None for m in model.modules() if isinstance(m, ICConv2d))
    basic = icnets.create_model("ic_resnet18", ic=None)
    assert not list(ic_parameters(basic))
    assert revert_(basic) == []


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(ValueError, match=r"timm .* has no network 'resnet51'; near it: .*resnet"):
        icnets.create_model("resnet51")
    with pytest.raises(ValueError, match=r"hf-hub:me/net is no name of timm's; icnets\.hub\.from_pretrained opens"):
        icnets.create_model("hf-hub:me/net")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_twenty_steps_under_autocast_are_finite(dtype):
    model = timm.create_model("ic_resnet18", num_classes=10, channels=(16, 32, 64, 128))  # CPUs compute it slowly
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    # The scaler's default start, 65536, overflows the basic network's first gradient too and is then halved.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=dtype == torch.float16)
    x, target = torch.randn(8, 3, 32, 32), torch.arange(8) % 10
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.functional.cross_entropy(model(x), target)
        assert loss.isfinite()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert all(p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
    assert loss < 2.3


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"can't get timm's pretrained weights of resnet10t: .*; .* give --weights FILE"
    ):
        make_network("resnet10t", 2, pretrained=True)
    assert time.perf_counter() - start < 10
    assert constants.HF_HUB_OFFLINE is False
