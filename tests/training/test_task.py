import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from icnets import DistillationSchedule, ICConfig, WeakLogitDistillation, convert_, create_model, ic_parameters, save
from icnets.checkpoint.foreign import read_weights
from icnets.checkpoint.image_notes import ImageNotes
from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.training.network import build_network
from icnets.training.optimization import learning_rate_factor, parameter_groups
from icnets.training.task import ClassificationTask
from icnets.training.teachers import TrainedNetwork

TINY: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}


def tiny(num_classes: int = 10, **options: Any) -> nn.Module:
    return create_model("resnet10t", ic=None, num_classes=num_classes, in_chans=1, **TINY, **options)


def task(model: str | nn.Module = "resnet10t", **options: Any) -> ClassificationTask:
    if isinstance(model, str):
        options.setdefault("model_options", TINY)
    return ClassificationTask(model, num_classes=10, in_chans=1, **options)


def digits(**options: Any) -> ImageData:
    return ImageData(**{"train_size": 80, "image_size": 16, "batch_size": 40, **options})


def fit(module: ClassificationTask, data: ImageData | None = None, *callbacks: Callback, **options: Any) -> L.Trainer:
    quiet()
    trainer = L.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )
    trainer.fit(module, data or digits())
    return trainer


# The network.


def test_names_and_configurations_say_what_is_converted() -> None:
    def units(module: ClassificationTask) -> int:
        return len({name.rpartition(".")[0] for name, _ in ic_parameters(module.network)})

    assert units(task("resnet10t")) == 0
    everything = units(task("resnet10t", ic=ICConfig()))
    assert 0 < units(task("resnet10t", ic=ICConfig(layers="kxk"))) < everything
    options = {"channels": [8, 8, 16, 16]}
    assert units(task("ic_resnet18", model_options=options)) == 21
    assert units(task("ic_resnet18", model_options=options, ic=ICConfig(layers="no-stem"))) == 20
    assert units(task(tiny(), ic=ICConfig())) == everything


@pytest.mark.parametrize("form", ["icnets", "pth", "safetensors of a converted network"])
def test_init_from_keeps_the_function(tmp_path: Path, form: str) -> None:
    teacher = tiny().eval()
    path = tmp_path / "weights.safetensors"
    if form == "icnets":
        save(teacher, path)
    elif form == "pth":
        path = path.with_suffix(".pth")
        torch.save({"state_dict": {f"module.{k}": v for k, v in teacher.state_dict().items()}}, path)
    else:
        convert_(teacher, ICConfig(collision_weight=0.3))
        save(teacher, path)
    module = task("resnet10t", init_from=path, ic=ICConfig(warm_start="gain")).eval()
    x = torch.randn(4, 1, 16, 16)
    assert len(list(ic_parameters(module.network))) > 0
    assert torch.allclose(module(x), teacher(x), rtol=1e-5, atol=1e-6)


def test_a_registered_name_warm_starts_by_itself(tmp_path: Path) -> None:
    options = {"channels": [8, 8, 16, 16]}
    teacher = create_model("resnet18", ic=None, num_classes=10, in_chans=1, **options).eval()
    save(teacher, tmp_path / "basic.safetensors")
    module = task("ic_resnet18", model_options=options, init_from=tmp_path / "basic.safetensors").eval()
    x = torch.randn(4, 1, 16, 16)
    assert torch.allclose(module(x), teacher(x), rtol=1e-5, atol=1e-6)
    assert any(name.endswith("gain") for name, _ in ic_parameters(module.network))


def test_calibration_happens_when_the_data_is_there(tmp_path: Path) -> None:
    teacher = tiny().eval()
    save(teacher, tmp_path / "basic.safetensors")
    module = task(init_from=tmp_path / "basic.safetensors", ic=ICConfig(warm_start="calibrate"), lr=1e-9)
    assert not list(ic_parameters(module.network))
    fit(module, max_epochs=1)
    assert any((p.abs() > 1e-3).any() for _, p in ic_parameters(module.network))
    own = module.state_dict()
    weights = {f"network.{name}": p for name, p in teacher.named_parameters()}
    assert all(torch.allclose(own[name], p, atol=1e-5) for name, p in weights.items())


def test_an_ic_network_is_not_calibrated_again(tmp_path: Path) -> None:
    network = tiny()
    convert_(network)
    save(network, tmp_path / "ic.safetensors")
    with pytest.raises(ValueError, match=r"ic\.safetensors has IC units already, and only basic weights can be"):
        task(init_from=tmp_path / "ic.safetensors", ic=ICConfig(warm_start="calibrate"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_last_layer_of_other_classes_is_new(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained, file = tiny(num_classes=7), tmp_path / f"seven{suffix}"
    if suffix == ".pth":
        torch.save(trained.state_dict(), file)
    else:
        save(trained, file)
    found = task(init_from=file).network.state_dict()
    assert f"seven{suffix} is of 7 classes: the last layer, fc, is new" in caplog.text
    assert found["fc.weight"].shape == (10, 16)
    assert all(torch.equal(found[k], v) for k, v in trained.state_dict().items() if not k.startswith("fc."))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = tiny(num_classes=7).state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"] = torch.zeros(5, 1, 3, 3)
    torch.save(state, tmp_path / "seven.pth")
    with pytest.raises(ValueError, match=r"seven\.pth doesn't fit the network: .*\(5, 1, 3, 3\)"):
        task(init_from=tmp_path / "seven.pth")
    with pytest.raises(ValueError, match=r"there is no checkpoint .*none\.pth"):
        task(init_from=tmp_path / "none.pth")


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth holds objects \(.*pathlib.*\), not only weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1; it must be positive"),
        ({"lr": math.inf}, "lr is inf; it must be positive"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and less than 1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of sgd, adamw, lamb"),
        ({"schedule": "flat"}, "schedule is 'flat'; it must be one of one-cycle, cosine, step"),
        ({"warmup": 1.0}, "warmup is 1.0; it must be at least 0 and less than 1"),
        (
            {"label_smoothing": 0.1, "distillation": WeakLogitDistillation()},
            "label_smoothing is 0.1 for the task and 0.0",
        ),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_classes_and_options_of_a_module() -> None:
    with pytest.raises(ValueError, match="num_classes is 1; classification needs at least 2"):
        ClassificationTask("resnet10t", num_classes=1)
    with pytest.raises(ValueError, match="the model is a module already"):
        task(tiny(), pretrained=True)


# The optimisation.


def test_only_weights_decay() -> None:
    network = tiny()
    convert_(network, ICConfig(warm_start="gain"))
    decayed, rest = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {n for n, p in network.named_parameters() if p.ndim > 1}
    assert {id(p) for _, p in ic_parameters(network)} <= {id(p) for p in rest["params"]}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_what_ic_adds_can_have_a_rate_of_its_own() -> None:
    network = tiny()
    convert_(network, ICConfig(warm_start="gain"))
    decayed, rest, own = parameter_groups(network, 0.1, new_lr=0.002)
    assert [group.get("lr") for group in (decayed, rest, own)] == [None, None, 0.002]
    assert (decayed["weight_decay"], rest["weight_decay"], own["weight_decay"]) == (0.1, 0.0, 0.0)
    assert [id(p) for p in own["params"]] == [id(p) for _, p in ic_parameters(network)]
    before, _ = parameter_groups(network, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(p) for p in before["params"]]
    assert len(decayed["params"]) + len(rest["params"]) + len(own["params"]) == len(list(network.parameters()))
    assert len(parameter_groups(tiny(), 0.1, new_lr=0.002)) == 2


def test_frozen_parameters_are_left_out() -> None:
    network = tiny()
    network.requires_grad_(False)
    network.get_submodule("fc").requires_grad_(True)
    assert sum(len(group["params"]) for group in parameter_groups(network, 0.1)) == 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("one-cycle", {0: 0.05 / 0.2, 25: (1 - 0.255) / 0.8, 99: 0.005 / 0.8}),
        ("cosine", {0: 0.005 / 0.2 * 10, 59: 0.5 * (1 + math.cos(math.pi * (0.595 - 0.2) / 0.8))}),
        ("step", {25: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
    ],
)
def test_learning_rates(schedule: Any, expected: dict[int, float]) -> None:
    values = [learning_rate_factor(s, total=100, schedule=schedule, warmup=0.2) for s in range(101)]
    assert values[:20] == pytest.approx([(s + 0.5) / 20 for s in range(20)])
    assert all(0 <= v <= 1 for v in values)
    assert all(a >= b for a, b in pairwise(values[20:]))
    for step, value in expected.items():
        if step >= 20:
            assert values[step] == pytest.approx(value)
    assert learning_rate_factor(0, total=100, schedule=schedule, warmup=0.0) > 0.9


def test_training_without_an_end() -> None:
    with pytest.raises(ValueError, match=r"training has no end: give trainer\.max_epochs or trainer\.max_steps"):
        fit(task(), max_epochs=-1)


# Training.


def test_it_learns() -> None:
    data = digits(train_size=300, batch_size=50)
    trainer = fit(task(model_options={"channels": [16, 32, 32, 64]}, ic=ICConfig()), data, max_epochs=10)
    assert trainer.callback_metrics["val/top1"] > 0.7
    assert trainer.callback_metrics["val/top5"] > trainer.callback_metrics["val/top1"]


def test_two_classes_have_no_top5() -> None:
    module = ClassificationTask("resnet10t", num_classes=2, in_chans=1, model_options=TINY)
    assert sorted(module.metrics) == ["teacher_top1", "test_top1", "val_top1"]


class _CountingTeacher(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.network(x)
        return out


def test_the_teacher_rests_where_its_weight_is_zero() -> None:
    teacher = _CountingTeacher(tiny())
    loss = WeakLogitDistillation(schedule=DistillationSchedule("early-off", off=0.5))
    fit(task(teacher=teacher, distillation=loss), max_epochs=4)
    assert teacher.calls == 1 + 4  # the check, and the first half of 4 epochs of 2 steps


def test_the_progress_that_the_loss_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    module = task(teacher=tiny())
    seen: list[float] = []
    terms = module.criterion.terms

    def spy(student: Tensor, teacher: Tensor | None, target: Tensor, progress: float) -> Any:
        seen.append(progress)
        return terms(student, teacher, target, progress)

    monkeypatch.setattr(module.criterion, "terms", spy)
    fit(module, max_epochs=2)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_the_teacher_is_frozen_and_in_no_state_dict() -> None:
    teacher = tiny()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    module = task(teacher=teacher)
    trainer = fit(module)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any("teacher" in key for key in module.state_dict() if "metrics" not in key)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}
    assert optimized == {id(p) for p in module.network.parameters()}


def test_a_teacher_of_other_classes_is_refused_before_the_first_step() -> None:
    module = task(teacher=tiny(num_classes=7))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ValueError, match="the student has 10 classes and the teacher 7"):
        fit(module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_teacher_with_its_own_normalisation() -> None:
    mean, std = (0.5,), (0.25,)
    module = task(teacher=TrainedNetwork("tiny", tiny(), ImageNotes(mean=mean, std=std)))
    data = digits()
    fit(module, data, max_epochs=1)
    assert module.teacher is not None
    pixels = torch.rand(2, 1, 16, 16)
    ours, theirs = (pixels - data.mean[0]) / data.std[0], (pixels - mean[0]) / std[0]
    assert torch.allclose(module.teacher.normalize(ours), theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("patience", "stopped"), [(2, True), (None, False)])
def test_surpass_stop(patience: int | None, stopped: bool) -> None:
    teacher = tiny()
    nn.init.zeros_(teacher.get_submodule("fc").weight)  # always the same class: easily matched
    loss = WeakLogitDistillation(surpass_patience=patience)
    module = task(teacher=teacher, distillation=loss)
    fit(module, digits(train_size=300), max_epochs=6)
    assert module.criterion.stopped is stopped
    assert (module._teacher_top1 is not None) is (patience is not None)


def test_soft_targets_train() -> None:
    fit(task(teacher=tiny(), ic=ICConfig()), digits(mixup=0.5, cutmix=1.0), max_epochs=1)


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    with pytest.raises(
        FloatingPointError, match=r"the loss is no finite number .* at step [1-9]\d* \(epoch \d+, batch \d+\)"
    ):
        fit(task(lr=1e30), max_epochs=20)


def test_images_that_the_network_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"the network can't take images of shape \(1, 16, 16\)"):
        fit(ClassificationTask("resnet10t", num_classes=10, in_chans=3, model_options=TINY))
    with pytest.raises(ValueError, match=r"the network gives shape \(2, 7\) for 2 images of 10 classes"):
        fit(task(tiny(num_classes=7)))


# Checkpoints.


def test_checkpoints_are_plain_data(tmp_path: Path) -> None:
    module = task(teacher=tiny(), ic=ICConfig(), distillation=WeakLogitDistillation(surpass_patience=1))
    fit(module, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["icnets"].keys() == {"class_names", "seed", "means"}
    assert content["icnets"]["class_names"] == [str(i) for i in range(10)]
    names = {name.partition(".")[0] for name in content["state_dict"]}
    assert names == {"network", "criterion"}
    again = task(ic=ICConfig())
    again.load_state_dict(content["state_dict"])
    basic = tiny()
    convert_(basic)
    basic.load_state_dict(read_weights(tmp_path / "a.ckpt", basic.state_dict()).state)


def test_a_checkpoint_of_another_network_or_other_classes(tmp_path: Path) -> None:
    trainer = fit(task(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match=r"doesn't fit this network, an IC ResNet: it lacks network\.conv1\.0\.collision"
    ):
        trainer.validate(task(ic=ICConfig()), digits(), ckpt_path=str(tmp_path / "a.ckpt"))

    class Letters(ImageData):
        class_names = ["a", "b"]  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"trained on 10 classes \(0, 1, .*, 9\), but the data has 2 classes \(a, b\)"):
        trainer.validate(task(), Letters(train_size=80, image_size=16), ckpt_path=str(tmp_path / "a.ckpt"))


def test_a_conversion_that_changes_what_a_trained_network_computes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"channels": [8, 8, 8, 8], "stem_width": 8}
    start = tmp_path / "start.safetensors"
    save(create_model("resnet10t", ic=None, num_classes=2, **small), start)
    options = {"num_classes": 2, "in_chans": 3, "options": small, "init_from": start}
    build_network("resnet10t", ic=ICConfig(warm_start="gain"), **options)
    build_network("resnet10t", ic=ICConfig(), **{**options, "init_from": None})
    assert "warm_start" not in caplog.text
    ClassificationTask("resnet10t", num_classes=2, model_options=small, init_from=str(start))  # a path may be text
    build_network("resnet10t", ic=ICConfig(layers="kxk"), **options)
    assert "ic.warm_start is none, which changes what the trained network computes; gain keeps" in caplog.text
