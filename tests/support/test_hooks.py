"""A layer is seen however it is called: by position, by name, with other arguments before its input, past its hooks."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from icnets import ICConfig, convert_, fuse_, load, revert_, save
from icnets.profile.measure import count_macs
from icnets.support.hooks import watched

CALLS = {
    "position": lambda conv, x: conv(x),
    "name": lambda conv, x: conv(input=x),
    "forward": lambda conv, x: conv.forward(x),
    "forward by name": lambda conv, x: conv.forward(input=x),
    "class": lambda conv, x: type(conv).__call__(conv, x),
    "checkpoint": lambda conv, x: checkpoint(conv, x, use_reentrant=False),
    "map": lambda conv, x: next(map(conv, [x])),
}


class Net(nn.Module):
    def __init__(self, call, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.call = layer or nn.Conv2d(3, 4, 3), call

    def forward(self, x):
        return self.call(self.conv, x)


@pytest.mark.parametrize("name", CALLS)
def test_measurements_do_not_depend_on_the_form_of_the_call(name):
    x = torch.randn(2, 3, 6, 6)
    nets, seen = [Net(CALLS["position"]), Net(CALLS[name])], []
    for net in nets:
        convert_(net)
        net.conv.register_forward_hook(lambda module, args, output: 2 * output)
        net.conv.collision.data.fill_(0.1)
        with watched([net.conv], lambda module, given, output: seen.append((given, output.detach()))):
            net(x)
    (given, expected), (again, found) = seen
    assert given is again is x
    assert torch.equal(expected, found)
    assert count_macs(nets[1], x) == count_macs(nets[0], x)
    assert "forward" not in nets[1].conv.__dict__


@pytest.mark.parametrize("name", CALLS)
def test_calibration_does_not_depend_on_the_form_of_the_call(name):
    x = torch.randn(16, 3, 6, 6)
    nets = [Net(CALLS["position"]), Net(CALLS[name])]
    for net in nets:
        net.conv.register_forward_hook(lambda module, args, output: 2 * output)
    reports = [convert_(net, ICConfig(warm_start="calibrate"), calibration_data=[x]) for net in nets]
    expected, found = (report.calibration for report in reports)
    if name in ("forward", "forward by name"):  # the one form of call that passes a hook of the network's own by
        assert found is not None
        assert 0 < found.change <= 0.01
    else:
        assert expected == found
    assert torch.equal(nets[0].conv.inner_bias, nets[1].conv.inner_bias)


def test_the_input_of_a_transposed_layer_is_found_behind_its_size():
    seen = []
    net = Net(lambda conv, x: conv(output_size=[8, 8], input=x), nn.ConvTranspose2d(3, 4, 3, 2, 1))
    x = torch.randn(1, 3, 4, 4)
    convert_(net)
    with watched([net.conv], lambda module, given, output: seen.append((given is x, tuple(output.shape)))):
        net(x)
    assert seen == [(True, (1, 4, 8, 8))]


def test_a_forward_pass_of_the_instance_comes_back_after_an_error():
    conv = nn.Conv2d(3, 4, 3)
    conv.forward = own = lambda x: x + 1

    def fail(module, x, output):
        assert module.forward is own
        raise KeyError("seen")

    with pytest.raises(KeyError), watched([conv], fail):
        conv(torch.zeros(1))
    assert conv.__dict__["forward"] is own


class Batch(nn.Module):
    """Takes a whole batch as one argument: a dict or a list."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, batch):
        images = batch["images"] if isinstance(batch, dict) else torch.stack(batch)
        return self.conv(images)


def test_a_batch_that_is_a_dict_or_a_list():
    images = torch.randn(2, 3, 6, 6)
    for example in (({"images": images},), (list(images),)):
        model = Batch().eval()
        convert_(model)
        fuse_(model, example)
    for example in ({"images": images}, list(images)):
        with pytest.raises(ValueError, match=r"\(batch,\)"):
            fuse_(Batch().eval(), example)


def test_a_forward_pass_that_removed_hooks_left_on_the_instance_is_the_class_s_own(tmp_path):
    """As accelerate.hooks.remove_hook_from_module does it."""
    x, basic = torch.randn(2, 3, 6, 6), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    y, model = basic(x), copy.deepcopy(basic)
    for module in model.modules():
        module.forward = module.forward
    assert convert_(model, ICConfig(warm_start="gain")).converted == ["0"]
    model[0].gain.data.fill_(1)
    for module in model.modules():
        module.forward = module.forward
    assert not torch.equal(model(x), y)
    save(model, tmp_path / "ic.safetensors")
    assert torch.equal(load(tmp_path / "ic.safetensors", copy.deepcopy(basic))(x), model(x))
    revert_(model)
    assert torch.equal(model(x), y)
