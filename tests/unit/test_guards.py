"""Who takes a unit for its weight and bias: refused where the collision would be lost, left alone where it isn't."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval, parametrizations, parametrize, prune
from torch.utils import mkldnn

from icnets import ICConfig, ICConv2d, convert_, fuse_, ic_parameters, revert_


def awake(model, **config):
    """``model`` converted, its vectors as a training leaves them."""
    convert_(model, ICConfig(**config), optimizers=())
    with torch.no_grad():
        for name, vector in ic_parameters(model):
            if not name.endswith("gain"):
                vector.normal_(0, 0.3)
    return model


def off_by(model, x, y):
    with torch.no_grad():
        return float((model(x) - y).abs().max() / y.abs().max())


# -- methods that merge branches --------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.merged = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), None
        self.deploy = False

    def forward(self, x):
        return self.a(x) + self.b(x) if self.merged is None else self.merged(x)


def plain(weight, bias):
    conv = nn.Conv2d(4, 4, 1)
    conv.weight.data, conv.bias.data = weight, bias
    return conv


def both(block):
    return sum(c.weight.data for c in (block.a, block.b)), block.a.bias.data + block.b.bias.data


class Direct(Block):
    def merge(self):
        weight = self.a.weight.data + self.b.weight.data
        self.merged = plain(weight, self.a.bias.data + self.b.bias.data)


class ByHelper(Block):
    @torch.no_grad()
    def fuse_repvgg_block(self, verbose=False):
        self.merged = plain(*both(self))


class ByMethods(Block):
    def kernel(self, layer):
        return layer.weight.data, layer.bias.data

    def equivalent(self):
        return [p + q for p, q in zip(self.kernel(self.a), self.kernel(self.b), strict=True)]

    def switch_deploy(self):
        setattr(self, "merged", plain(*self.equivalent()))  # noqa: B010


class InLoop(Block):
    def collapse(self):
        conv = nn.Conv2d(4, 4, 1)
        conv.weight.data.zero_()
        conv.bias.data.zero_()
        for layer in (self.a, self.b):
            conv.weight.data += layer.weight.data
            conv.bias.data += layer.bias.data
        self.__setattr__("merged", conv)


class IntoOne(Block):
    def forward(self, x):
        return self.a(x) if self.deploy else self.a(x) + self.b(x)

    def absorb(self):
        self.a.weight.data += self.b.weight.data
        self.a.bias.data += self.b.bias.data
        self.deploy = True


class Inherited(ByMethods):
    def export_form(self):
        super().switch_deploy()
        return self


class WithoutSource(Block):
    exec(  # as a decorator or a notebook may leave it
        "def reparam(self):\n"
        "    self.merged = nn.Conv2d(4, 4, 1)\n"
        "    self.merged.weight.data = self.a.weight.data + self.b.weight.data\n"
        "    self.merged.bias.data = self.a.bias.data + self.b.bias.data\n"
    )


def fold(conv, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = nn.Conv2d(4, 4, 1).eval()
    fused.weight.data = conv.weight.data * scale.view(-1, 1, 1, 1)
    fused.bias.data = (conv.bias.data - norm.running_mean) * scale + norm.bias
    return fused


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))

    def forward_fuse(self, x):
        return self.conv(x)


class Whole(nn.Module):
    """The network folds the norms of its blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Normed(), Normed())

    def forward(self, x):
        return self.blocks(x)

    def fuse(self):
        for m in self.modules():
            if isinstance(m, Normed):
                m.conv = fold(m.conv, m.bn)
                del m.bn
                m.forward = m.forward_fuse
        return self


class Outer(nn.Sequential):
    """Asks its blocks to."""

    def merge(self):
        for m in self:
            m.merge()


MERGING = [(Direct, "merge"), (ByHelper, "fuse_repvgg_block"), (ByMethods, "switch_deploy"), (InLoop, "collapse")]
MERGING += [(IntoOne, "absorb"), (Inherited, "export_form"), (WithoutSource, "reparam"), (Whole, "fuse")]
MERGING += [(lambda: Outer(Direct(), Direct()), "merge")]


@pytest.mark.parametrize(("make", "method"), MERGING, ids=[m for _, m in MERGING])
def test_a_method_that_merges_is_refused_by_whatever_name(make, method):
    model, x = make().eval(), torch.randn(2, 4, 5, 5)
    basic = model(x).detach()
    awake(model)
    y = model(x).detach()
    for refused in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)) if "<" not in str(make) else model):
        with pytest.raises(TypeError, match=r"would .*lose (its|their) collisions?; call icnets\.fuse_\(model\)"):
            getattr(refused, method)()
        assert off_by(refused, x, y) == 0
    revert_(model)
    getattr(model, method)()
    assert off_by(model, x, basic) < 1e-5


@pytest.mark.parametrize(("make", "method"), MERGING, ids=[m for _, m in MERGING])
def test_silent_units_are_merged(make, method):
    model, x = make().eval(), torch.randn(2, 4, 5, 5)
    awake(model, warm_start="gain")
    y = model(x).detach()
    getattr(model, method)()
    assert off_by(model, x, y) < 1e-5


class Harmless(Block):
    """Reads weights, or changes itself, but no function by the other."""

    def penalty(self):
        self.last = sum(m.weight.square().sum() for m in self.modules() if isinstance(m, nn.Conv2d))
        return self.last

    def remember(self):
        self.anchor = {"a": self.a.weight.detach().clone()}

    def tie(self):
        self.b.weight = self.a.weight

    def init_weights(self):
        for m in (self.a, self.b):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            m.bias.data.zero_()
        self.deploy = False

    def limit(self):
        self.a.weight.data = self.a.weight.data.renorm(2, 0, 1.0)
        self.b.weight.data.clamp_(-1, 1)

    def momentum(self):
        with torch.no_grad():
            self.b.weight.copy_(self.b.weight * 0.9 + self.a.weight * 0.1)

    def fuse(self, a=1, b=2):
        self.merged = None
        return a + b

    def check(self):
        self.deploy = self.a.weight.shape == self.b.weight.shape and self.a.weight.dtype is torch.float32


HARMLESS = ["penalty", "remember", "tie", "init_weights", "limit", "momentum", "fuse", "check"]


@pytest.mark.parametrize("method", HARMLESS)
def test_other_methods_are_left_alone(method):
    model = awake(Harmless())
    assert method not in model.__dict__
    getattr(model, method)()


def test_what_a_merged_weight_is_copied_into_may_be_a_layer_made_by_hand():
    block = Direct()
    block.a = ICConv2d(4, 4, 1)
    with pytest.raises(TypeError, match="merge of Direct"):
        block.merge()


# -- another weight in eval mode --------------------------------------------------------------------------------------


def normed(layer, norm):
    torch.manual_seed(0)
    model = nn.Sequential(layer, norm)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        norm.weight.normal_()
    return model.eval()


FOLDED = {
    "1d": (lambda: normed(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), fuse_conv_bn_eval, (2, 4, 9)),
    "2d": (lambda: normed(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), fuse_conv_bn_eval, (2, 4, 9, 9)),
    "3d": (lambda: normed(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), fuse_conv_bn_eval, (2, 4, 5, 5, 5)),
    "transposed": (
        lambda: normed(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)),
        lambda conv, norm: fuse_conv_bn_eval(conv, norm, transpose=True),
        (2, 4, 5, 5),
    ),
    "linear": (lambda: normed(nn.Linear(4, 6), nn.BatchNorm1d(6)), fuse_linear_bn_eval, (5, 4)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_torchs_folding_of_a_norm_is_refused_or_right(name):
    make, fold_norm, shape = FOLDED[name]
    x = torch.randn(shape)
    model = awake(make(), linear=True)
    y = model(x).detach()
    with pytest.raises(TypeError, match=r"in eval mode was given other values, which would lose"):
        fold_norm(*model)
    assert off_by(model, x, y) == 0
    silent = awake(make(), linear=True, warm_start="gain")
    y = silent(x).detach()
    assert off_by(fold_norm(*silent), x, y) < 1e-5


def test_the_deployed_form_is_refused_too():
    model = awake(FOLDED["2d"][0]())
    model.append(nn.ReLU()).append(nn.BatchNorm2d(6)).eval()
    x = torch.randn(2, 4, 9, 9)
    fuse_(model, x)
    assert type(model[0]).__name__ == "FusedICConv2d"
    with pytest.raises(TypeError, match="FusedICConv2d in eval mode was given other values"):
        fuse_conv_bn_eval(model[0], nn.BatchNorm2d(6).eval())


def test_weights_may_be_given_and_loaded():
    unit = awake(nn.Conv2d(4, 6, 3)).eval()
    x = torch.randn(2, 4, 9, 9)
    y = unit(x).detach()
    unit.weight = nn.Parameter(unit.weight.detach().clone(), requires_grad=False)  # frozen: the same values
    prune.identity(unit, "weight")
    prune.remove(unit, "weight")
    parametrizations.weight_norm(unit)
    parametrize.remove_parametrizations(unit, "weight")
    torch.func.functional_call(unit, {"weight": torch.zeros(6, 4, 3, 3)}, (x,))
    assert off_by(unit, x, y) < 1e-6
    unit.load_state_dict({k: v + 1 for k, v in unit.state_dict().items()}, assign=True)
    unit.weight = nn.Parameter(torch.zeros(6, 2, 3, 3))  # of another shape: another layer is meant
    unit.train().weight = nn.Parameter(torch.ones(6, 2, 3, 3))
    assert bool((unit.weight == 1).all())


# -- another layer in its place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_mkldnn_copies_are_refused(layer, training):
    model = awake(nn.Sequential(nn.ReLU(), nn.Sequential(copy.deepcopy(layer))), linear=True).train(training)
    with pytest.raises(TypeError, match=r"Mkldnn\w+ would replace '0', a IC\w+, and lose its collision"):
        mkldnn.to_mkldnn(model)


def test_a_layer_remade_from_a_unit_is_refused_and_others_take_its_place():
    block = awake(Normed()).eval()
    unit = block.conv
    folded = fold(block.conv, block.bn)
    for replacement in (folded, nn.Sequential(folded, nn.ReLU()), copy.deepcopy(revert(unit))):
        with pytest.raises(TypeError, match=r"would replace .* and lose its collision"):
            block.conv = replacement
        assert block.conv is unit
    for replacement in (nn.Identity(), nn.Conv2d(3, 4, 1), nn.Sequential(unit, nn.ReLU()), copy.deepcopy(unit)):
        block.conv = replacement
    block.conv = unit
    block.train()
    block.conv = nn.Conv2d(4, 4, 1)  # a new head for another training
    block.conv = unit
    del block.conv
    block.conv = folded


def revert(unit):
    basic = copy.deepcopy(unit)
    revert_(basic)
    return basic


class Resized(Block):
    """Makes a layer anew for other sizes, and only notes those that it has already."""

    def set_size(self, size=None, kernel=1):
        if kernel < 1:
            raise ValueError("kernel")
        if kernel != self.a.kernel_size[0]:
            resized = nn.Conv2d(4, 4, kernel)
            resized.weight.data = self.a.weight.data.expand(-1, -1, kernel, kernel) / kernel**2
            self.a = resized
        self.merged, self.size = None, size
        return self


def test_a_method_is_judged_by_what_it_would_do_with_these_arguments():
    block = awake(Resized())
    unit, state = block.a, torch.random.get_rng_state()
    assert block.set_size(size=32) is block
    assert (block.size, block.a) == (32, unit)
    with pytest.raises(TypeError, match="set_size of Resized"):
        block.set_size(kernel=3)
    assert (block.size, block.a) == (32, unit)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="kernel"):
        block.set_size(kernel=0)


def test_timms_transformers_take_other_image_sizes():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).eval()
    awake(model)
    model.set_input_size(img_size=96)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 3)
    with pytest.raises(TypeError, match="set_input_size of PatchEmbed"):
        model.set_input_size(img_size=96, patch_size=8)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 3)


# -- adapters ---------------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """As those of peft are made: the layer is the ``base_layer``, and merging writes into its weight."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_an_adapter_around_a_unit_is_refused_and_one_around_a_basic_layer_stays_as_it_is():
    model, x = awake(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), linear=True).eval(), torch.randn(3, 4)
    y, deployed = model(x).detach(), copy.deepcopy(model)
    fuse_(deployed, x)
    for unit in (model[0], deployed[0], nn.Sequential(model[0])):
        with pytest.raises(TypeError, match=r"Adapter can't be put on a \w*ICLinear: .* leave IC units out"):
            Adapter(unit)
    assert off_by(model, x, y) == 0
    adapted = nn.Sequential(Adapter(nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    y = adapted(x).detach()
    report = convert_(adapted, ICConfig(linear=True, warm_start="gain"))
    assert report.converted == ["1"]
    assert report.skipped == dict.fromkeys(["0.base_layer", "0.lora_A", "0.lora_B"], "it belongs to an adapter")
    assert off_by(adapted, x, y) == 0
