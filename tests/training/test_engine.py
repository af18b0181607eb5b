import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from icnets import ICConfig, convert_, create_model
from icnets.training.task import ClassificationTask
from training.test_task import TINY, digits, fit, task, tiny


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(1)  # of stochastic depth
    network(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def network(kind: str) -> nn.Module:
    if kind == "stochastic depth":
        return tiny(drop_path_rate=0.3)
    return create_model(kind, ic=None, num_classes=10, in_chans=1)


@pytest.mark.parametrize("inner_gain", [False, True])
@pytest.mark.parametrize("kind", ["stochastic depth", "mobilenetv2_035"])
def test_gradients_with_recomputed_activations(kind: str, inner_gain: bool) -> None:
    expected = network(kind).train()
    convert_(expected, ICConfig(warm_start="gain") if inner_gain else ICConfig(collision_weight=0.3))
    for name, parameter in expected.named_parameters():
        if name.endswith(("inner_bias", "gain")):
            nn.init.normal_(parameter, std=0.3)
    found = copy.deepcopy(expected)
    found.set_grad_checkpointing(True)
    x = torch.randn(4, 1, 32, 32)
    assert found.state_dict().keys() == expected.state_dict().keys()
    ours = gradients(found, x)
    for name, value in gradients(expected, x).items():
        torch.testing.assert_close(ours[name], value, msg=name)
    again = copy.deepcopy(found)  # as an average of weights does
    torch.testing.assert_close(again(x), found(x))


def test_activations_are_in_fact_recomputed() -> None:
    module = network("resnet10t")
    inner = module.get_submodule("layer1.0.conv1")
    module.set_grad_checkpointing(True)
    calls: list[int] = []
    inner.register_forward_hook(lambda *_: calls.append(1))
    loss = module(torch.randn(2, 1, 32, 32)).sum()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    with torch.no_grad():
        module(torch.randn(2, 1, 32, 32))
    assert len(calls) == 3


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"compile": True}],
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
    found.compile()
    x = torch.randn(4, 1, 16, 16)
    ours = gradients(found, x)
    for name, value in gradients(expected, x).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_teachers_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"there is no file resnet19, and timm .* has no network 'resnet19'"):
        task(teacher="timm:resnet19")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))  # no download
    module = ClassificationTask("resnet10t", 1000, 3, teacher="timm:vit_tiny_patch16_224", model_options=TINY)
    notes = module._make_teacher.args[0].notes
    assert (notes.mean, notes.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
