import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from icnets import ICConfig, convert_, create_model
from icnets.training.engine import blocks, compile_, precision_options, recompute_activations_, sharded
from icnets.training.task import ClassificationTask
from training.test_task import TINY, digits, fit, task, tiny


class _Plain(nn.Module):
    """A network that timm knows nothing of, whose activations overwrite what is before them, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True)),
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x).mean((2, 3)))
        return out


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(1)  # of stochastic depth
    network(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def network(kind: str) -> nn.Module:
    if kind == "plain":
        return _Plain()
    if kind == "stochastic depth":
        return tiny(drop_path_rate=0.3)
    return create_model(kind, ic=None, num_classes=10, in_chans=1)


@pytest.mark.parametrize("inner_gain", [False, True])
@pytest.mark.parametrize("kind", ["plain", "stochastic depth", "mobilenetv2_035"])
def test_gradients_with_recomputed_activations(kind: str, inner_gain: bool) -> None:
    expected = network(kind).train()
    convert_(expected, ICConfig(warm_start="gain") if inner_gain else ICConfig(collision_weight=0.3))
    for name, parameter in expected.named_parameters():
        if name.endswith(("inner_bias", "gain")):
            nn.init.normal_(parameter, std=0.3)
    found = copy.deepcopy(expected)
    recompute_activations_(found)
    x = torch.randn(4, 1, 32, 32)
    assert found.state_dict().keys() == expected.state_dict().keys()
    ours = gradients(found, x)
    for name, value in gradients(expected, x).items():
        torch.testing.assert_close(ours[name], value, msg=name)
    again = copy.deepcopy(found)  # as an average of weights does
    torch.testing.assert_close(again(x), found(x))


@pytest.mark.parametrize("kind", ["plain", "resnet10t"])
def test_activations_are_in_fact_recomputed(kind: str) -> None:
    module = network(kind)
    inner = module.get_submodule("features.2.0" if kind == "plain" else "layer1.0.conv1")
    recompute_activations_(module)
    calls: list[int] = []
    inner.register_forward_hook(lambda *_: calls.append(1))
    loss = module(torch.randn(2, 1, 32, 32)).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    with torch.no_grad():
        module(torch.randn(2, 1, 32, 32))
    assert len(calls) == 3


def test_a_network_without_blocks_says_so() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing: Linear has no sequence of blocks to recompute"):
        recompute_activations_(nn.Linear(3, 2))


def test_blocks() -> None:
    resnet = timm.create_model("resnet18")
    assert [type(b).__name__ for b in blocks(resnet)] == ["BasicBlock"] * 8
    assert len(blocks(timm.create_model("mobilenetv2_100"))) == 7
    assert len(blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))) == 2
    assert not sharded(resnet)


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"activation_checkpointing": True}, {"compile": True}],
    ids=lambda o: next(iter(o)),
)
def test_an_engine_changes_no_result(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(**options: bool) -> ClassificationTask:
        torch.manual_seed(3)
        module = task(ic=ICConfig(), teacher=tiny(), lr=0.01, **options)
        fit(module, digits(), max_epochs=1)
        return module

    with torch.compiler.set_stance("force_eager"):  # that it compiles is a slow test's matter
        expected, found = trained(), trained(**options)
    for (name, a), b in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    compiled: Any = found.network, found.teacher.model if found.teacher else None
    for part in compiled:
        assert (part._compiled_call_impl is not None) is ("compile" in options)
        layout = next(p for p in part.parameters() if p.ndim == 4 and min(p.shape) > 1)
        assert layout.is_contiguous(memory_format=torch.channels_last) is ("channels_last" in options)


@pytest.mark.slow
def test_a_compiled_network_computes_the_same() -> None:
    expected = tiny()
    convert_(expected, ICConfig())
    found = copy.deepcopy(expected)
    compile_(found)
    x = torch.randn(4, 1, 16, 16)
    ours = gradients(found, x)
    for name, value in gradients(expected, x).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert found.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
@pytest.mark.parametrize(
    ("precision", "accelerator", "strategy", "device"),
    [
        ("16-mixed", "cpu", "auto", "cpu"),
        (16, "cpu", "ddp", "cpu"),
        ("16-mixed", "gpu", "fsdp2", "cuda"),
        ("16-mixed", "gpu", "ddp", None),
        ("bf16-mixed", "cpu", "ddp", None),
        (None, "cpu", "auto", None),
    ],
)
def test_float16_where_lightning_has_none(precision: Any, accelerator: str, strategy: str, device: str | None) -> None:
    options = precision_options(precision, accelerator, strategy)
    if device is None:
        assert options == {}
    else:
        assert options["precision"] is None
        assert (options["plugins"][0].device, options["plugins"][0].scaler._device) == (device, device)


def test_float16_on_a_cpu_is_float16() -> None:
    seen: list[torch.dtype] = []
    module = task(ic=ICConfig())
    module.network.fc.register_forward_hook(lambda m, a, out: seen.append(out.dtype))  # type: ignore[union-attr]
    trainer = fit(module, **precision_options("16-mixed", "cpu", "auto"))
    assert torch.float16 in seen
    assert trainer.precision_plugin.scaler.is_enabled()


def test_teachers_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the student has 10 classes and the teacher timm:resnet18\.a1_in1k 1000"):
        task(teacher="timm:resnet18.a1_in1k")
    with pytest.raises(ValueError, match=r"timm has no pretrained network 'resnet19'; see timm\.list_pretrained"):
        task(teacher="timm:resnet19")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))  # no download
    module = ClassificationTask("resnet10t", 1000, 3, teacher="timm:vit_tiny_patch16_224", model_options=TINY)
    notes = module._teacher_network[0].notes  # type: ignore[union-attr]
    assert (notes.mean, notes.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
