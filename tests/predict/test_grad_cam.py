import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icnets import ICConv2d
from icnets.predict.contact_sheet import heated, picture
from icnets.predict.grad_cam import GradCam
from predict.tiny import network


def test_maps_are_those_of_the_formula() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), ICConv2d(4, 6, 3, collision_weight=0.1))
    model = nn.Sequential(body, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    x, classes = torch.randn(3, 3, 16, 20), torch.tensor([4, 0, 2])
    cam = GradCam(model, x[:1])
    assert cam.layer == "1"
    found = cam(x, classes)
    assert found.shape == (3, 16, 20)
    for i in range(3):
        maps = F.relu(body(x[i : i + 1])).detach().requires_grad_()
        logits = model[4](maps.mean((2, 3)))
        weights = torch.autograd.grad(logits[0, classes[i]], maps)[0][0].mean((1, 2))
        heat = sum(w * m for w, m in zip(weights, maps[0].detach(), strict=True)).clamp(min=0)
        heat = heat / heat.max() if heat.max() > 0 else heat
        expected = F.interpolate(heat[None, None], size=(16, 20), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found[i], expected)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_last_stage_of_a_resnet() -> None:
    model = network().requires_grad_(False)
    cam = GradCam(model, torch.zeros(1, 3, 64, 64))
    assert cam.layer == "layer4"
    heat = cam(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1


def test_a_network_without_maps() -> None:
    with pytest.raises(ValueError, match="larger than 1×1 for images of 4×4"):
        GradCam(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.zeros(1, 3, 4, 4))


def test_pictures_show_what_was_normalised() -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    x = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    image = picture(x, mean, std)
    assert image.size == (7, 5)
    assert image.getpixel((6, 4)) == tuple(pixels[:, 4, 6].tolist())
    assert picture(x[:1], mean[:1], std[:1]).getpixel((0, 0)) == (int(pixels[0, 0, 0]),) * 3
    heat = torch.zeros(5, 7)
    heat[4, 6] = 1
    shown = heated(torch.zeros(3, 5, 7), heat).sum(0)
    assert shown[4, 6] == shown.max() > 1
    assert shown[0, 0] < 0.05
    mixed = heated(pixels / 255, heat)  # transparent where there is no heat, and opaque nowhere
    assert torch.equal(mixed.flatten(1)[:, :-1], (pixels / 255).flatten(1)[:, :-1])
    assert ((mixed - pixels / 255).abs() <= 0.45 + 1e-6).all()
