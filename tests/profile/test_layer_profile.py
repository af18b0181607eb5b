"""icnets profile --layers."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets import ICConv2d, ICConvTranspose2d, ICLinear, create_model, save
from icnets.cli.profile import main
from icnets.profile.firing import firing_share
from icnets.profile.layer_profile import profile_layers
from icnets.profile.measure import count_macs
from training.folders import write_image


def randomised(unit: nn.Module) -> nn.Module:
    with torch.no_grad():
        for vector in unit.vectors():
            if vector is not None:
                vector.copy_(torch.randn_like(vector))
    return unit


UNITS = [
    (ICConv2d(4, 6, 3, padding=1, bias=False), (3, 4, 9, 8)),
    (ICConv2d(4, 6, 3, stride=2, groups=2, dilation=2, scale="sum", gain=0.5), (3, 4, 9, 8)),
    (ICConv2d(4, 4, 1, groups=4, inner_bias=False), (3, 4, 5, 5)),
    (ICConvTranspose2d(4, 6, 3, stride=2, groups=2), (3, 4, 5, 5)),
    (ICLinear(7, 5, gain=-1.0), (6, 7)),
]


@pytest.mark.parametrize(("unit", "shape"), UNITS, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_share_is_counted_as_the_formula_has_it(unit: nn.Module, shape: tuple[int, ...]) -> None:
    randomised(unit)
    x = torch.randn(shape)
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    u = argument(unit, x.double())
    assert firing_share(unit, x) == pytest.approx(float((u > 0).double().mean()), abs=1e-9)
    assert 0 < float((u > 0).double().mean()) < 1
    assert all(torch.equal(before[key], value) for key, value in unit.state_dict().items())


def argument(unit: nn.Module, x: Tensor) -> Tensor:
    """y - w's + b1 with s by a kernel of ones, in float64."""
    channels = [1, -1, *[1] * (x.dim() - 2)]
    weight = unit.weight.detach().double()
    ones = torch.ones_like(weight)
    if isinstance(unit, ICLinear):
        y, s = F.linear(x, weight), F.linear(x, ones)
    elif isinstance(unit, ICConvTranspose2d):
        options = {"stride": unit.stride, "padding": unit.padding, "groups": unit.groups, "dilation": unit.dilation}
        y, s = (F.conv_transpose2d(x, w, **options) for w in (weight, ones))
    else:
        options = {"stride": unit.stride, "padding": unit.padding, "groups": unit.groups, "dilation": unit.dilation}
        y, s = (F.conv2d(x, w, **options) for w in (weight, ones))
    collision, inner_bias, _ = unit.vectors()
    u = y - unit.sum_scale * collision.detach().double().view(channels) * s
    return u if inner_bias is None else u + inner_bias.detach().double().view(channels)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = ICConv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.twice(F.max_pool2d(self.twice(x), 2))).mean((2, 3)))


def test_every_call_of_every_layer() -> None:
    model = Shared().train()
    x = torch.randn(4, 3, 8, 8)
    costs = profile_layers(model, x, rounds=3, min_seconds=1e-4, threads=1)
    assert [cost.name for cost in costs] == ["twice", "twice, call 2", "head"]
    assert [cost.kind for cost in costs] == ["ICConv2d", "ICConv2d", "Linear"]
    assert [cost.output for cost in costs] == [(3, 8, 8), (3, 4, 4), (2,)]
    macs = count_macs(model, x)
    assert (sum(cost.macs.total for cost in costs), sum(cost.macs.ic for cost in costs)) == (macs.total, macs.ic)
    first, second, head = costs
    assert first.macs.basic == 3 * 3 * 9 * 64
    for cost in (first, second):
        assert cost.ms > 0
        assert cost.basic_ms is not None
        assert cost.basic_ms > 0
        assert cost.ratio is not None
        assert cost.ratio.low <= cost.ratio.median <= cost.ratio.high
        assert cost.fires is not None
        assert 0 < cost.fires < 1
    assert (head.basic_ms, head.ratio, head.fires) == (None, None, None)
    assert model.training
    assert torch.equal(model.norm.running_mean, torch.zeros(3))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="rounds is 0"):
        profile_layers(model, x, rounds=0)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and images, which is the current one."""
    monkeypatch.chdir(tmp_path)
    model = create_model("ic_resnet18", num_classes=3, in_chans=1, channels=(8, 8, 8, 8), layers=(1, 1, 1, 1))
    with torch.no_grad():
        model.conv1.inner_bias.fill_(-1e4)  # never fires
        model.layer1[0].conv1.inner_bias.fill_(1e4)  # always
    save(model.eval(), "net.safetensors", metadata={"mean": "0.5", "std": "0.2", "image_size": "32", "in_chans": "1"})
    for i in range(5):
        write_image(Path(f"photos/{i}.png"), seed=i)
    return tmp_path


FEW = ["--rounds", "1", "--threads", "1"]


def test_a_checkpoint_on_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["net.safetensors", "--layers", "--images", "photos", "--batch-size", "3", *FEW]
    assert main([*command, "--json", "layers.json"]) == 0
    printed = capsys.readouterr().out
    assert "net.safetensors, layer by layer: batch 3, 1×32×32" in printed
    assert "on 3 of the 5 images in photos." in printed
    record = json.loads(Path("layers.json").read_text())
    assert record["settings"]["images"] == "photos"
    fires = {layer["name"]: layer["fires"] for layer in record["layers"]}
    assert (fires["conv1"], fires["layer1.0.conv1"], fires["fc"]) == (0.0, 1.0, None)
    assert all(name in printed for name in fires)


def test_a_named_network_on_random_input(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--image-size", "32", "--batch-size", "2", "--num-classes", "5"]
    small = ["--options", '{"channels": [8, 8, 8, 8], "stem_width": 8}']
    assert main(["resnet10t", "--layers", *sizes, *small, *FEW]) == 0
    assert "on random input (normal noise)." in capsys.readouterr().out
    assert main(["resnet10t", "--layers", *sizes, *small, *FEW, "--json", "-"]) == 0
    layers = json.loads(capsys.readouterr().out)
    assert [layers[0]["kind"], layers[-1]["kind"]] == ["ICConv2d", "Linear"]
    assert layers[-1]["output"] == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("resnet18 --images photos", "--images is photos; it goes with --layers"),
        ("resnet18 --layers --against resnet34", "--against is resnet34, but --layers is of one network"),
        ("net.safetensors --layers --num-classes 4", "net.safetensors is a checkpoint"),
        ("none.safetensors --layers", "there is no checkpoint none.safetensors"),
        ("net.safetensors --layers --images nowhere", "nowhere is not a folder"),
        ("net.safetensors --layers --images broken", "can't read the image broken/x.png: .*icnets data check"),
        ("net.safetensors --layers --rounds 0", "--rounds is 0"),
        ("resnet-18 --layers", "no network 'resnet-18'"),
    ],
)
def test_mistakes_are_one_line(photos: Path, arguments: str, message: str) -> None:
    Path("broken").mkdir()
    Path("broken/x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=message) as caught:
        main(arguments.split())
    assert "\n" not in str(caught.value)
