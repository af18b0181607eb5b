"""What a teacher's file says of classes, normalisation and sizes is used, or contradicted in words before training."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from icnets import Teacher, WeakLogitDistillation, create_model, save
from icnets.checkpoint.image_notes import as_text
from icnets.checkpoint.weights_files import load_weights
from icnets.data.data_module import ImageData
from icnets.support.quiet import quiet
from icnets.support.text import differing
from icnets.training.task import ClassificationTask
from icnets.training.teachers import class_positions, compare_start, make_teacher, open_teacher
from training.folders import write_classes

TINY: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}
PETS = ["cat", "dog", "eel"]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pets", cat=8, dog=8, eel=8)


def images(root: Path, **options: Any) -> ImageData:
    return ImageData(root, **{"image_size": 24, "batch_size": 4, **options})


def teacher(path: Path, names: list[str] | None = None, classes: int | None = None, **notes: Any) -> str:
    network = create_model("resnet10t", ic=None, num_classes=classes or len(names or PETS), **TINY)
    strings = {key: as_text(value) for key, value in {**notes, "class_names": names}.items() if value is not None}
    save(network, path, metadata=strings)
    return str(path)


class Watch(Callback):
    """Keeps the teacher, and the first batch that it saw with what it said of it."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images, self.teacher = batch[0], pl_module.teacher


def fit(data: ImageData, source: Any, **options: Any) -> Watch:
    quiet()
    watch = Watch()
    module = ClassificationTask("resnet10t", 3, teacher=source, model_options=TINY, **options)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], limit_train_batches=1, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return watch


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("icnets"))


# Classes.


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1", "10", "2"], "knows 3 classes (1, 10, 2), the data has 3 classes (cat, dog, eel): it lacks 3 of the "
         "data's: cat, dog, eel; if only their names differ, save it with the data's as class_names in the metadata"),
        (["cat", "cow", "eel"], "it lacks 1 of the data's: dog; if only their names differ"),
        (["cat", "dog"], "knows 2 classes (cat, dog), the data has 3 classes (cat, dog, eel): it lacks 1"),
        (["dog", *PETS], "it has several times 1 of the data's: dog"),
    ],
)  # fmt: skip
def test_other_classes_are_an_error_with_both_lists(tmp_path: Path, pets: Path, names: list[str], message: str) -> None:
    source = teacher(tmp_path / "t.safetensors", names)
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(images(pets), source)


@pytest.mark.parametrize("names", [["eel", "cat", "dog"], ["ant", "eel", "bee", "dog", "cat", "fox, red"]])
def test_classes_by_name(tmp_path: Path, pets: Path, names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    watch = fit(images(pets), teacher(tmp_path / "t.safetensors", names))
    assert "the data has 3 classes (cat, dog, eel): its logits are taken by their names" in lines(caplog)
    own = watch.teacher.model(watch.images)
    assert own.shape[1] == len(names)
    assert torch.equal(watch.teacher(watch.images), own[:, [names.index(name) for name in PETS]])


def test_the_same_classes_are_left_as_they_are(tmp_path: Path, pets: Path) -> None:
    watch = fit(images(pets), teacher(tmp_path / "t.safetensors", PETS))
    assert torch.equal(watch.teacher(watch.images), watch.teacher.model(watch.images))


def test_classes_that_nobody_names(tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = teacher(tmp_path / "t.safetensors")
    fit(images(pets), source)
    assert f"the teacher {source} doesn't name its classes: the teacher's are taken in the order" in lines(caplog)


def test_long_lists_are_shown_where_they_differ() -> None:
    first = [f"c{i}" for i in range(1000)]
    second = first[:500] + first[501:]
    assert differing(first, second) == (
        "1000 classes (from 500 on: c500, c501, c502 and 497 more)",
        "999 classes (from 500 on: c501, c502, c503 and 496 more)",
    )
    assert differing(first, first[:990])[1] == "990 classes (from 990 on: none)"


def test_networks_of_timm_know_imagenets_names(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))  # no download
    with pytest.raises(
        ValueError, match=r"in_chans is 1, but the teacher timm:test_resnet\.r160_in1k was trained with 3"
    ):
        open_teacher("timm:test_resnet.r160_in1k", in_chans=1)
    found = open_teacher("timm:test_resnet.r160_in1k", in_chans=3)
    assert class_positions(found, ["n01443537", "n01440764"]) == [1, 0]
    with pytest.raises(ValueError, match=r"knows 1000 classes .*, the data has 2 classes"):
        class_positions(found, ["n01443537", "cat"])
    wnids = found.class_names[0]
    assert class_positions(found, wnids) is None
    assert class_positions(found, [str(i) for i in range(1000)]) is None
    for numbers in (sorted(str(i) for i in range(1000)), ["0", "1"]):  # as folders are sorted; not ImageNet's
        with pytest.raises(ValueError, match=rf"knows 1000 classes .* it lacks {len(numbers)} of the data's"):
            class_positions(found, numbers)


def test_how_to_be_taught_without_a_teacher_is_an_error(pets: Path) -> None:
    with pytest.raises(ValueError, match=r"given: distillation, and no teacher; give --model\.teacher FILE"):
        fit(images(pets), None, distillation=WeakLogitDistillation())


# Normalisation, channels, sizes.


def test_a_normalisation_that_nobody_notes_is_said(
    tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(images(pets), teacher(tmp_path / "noted.safetensors", PETS, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert "doesn't note" not in lines(caplog)
    source = teacher(tmp_path / "t.safetensors", PETS)
    fit(images(pets), source)
    line = f"the teacher {source} or the data doesn't note its mean and std: it gets the images with the data's"
    assert line in lines(caplog)


def test_its_own_normalisation_is_used(tmp_path: Path, pets: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    data = images(pets)
    watch = fit(data, teacher(tmp_path / "t.safetensors", PETS, mean=mean, std=std))
    pixels = watch.images.double() * _channels(data.std) + _channels(data.mean)
    wanted = watch.teacher.model.double()((pixels - _channels(mean)) / _channels(std))
    assert torch.allclose(
        watch.teacher.model.float()(watch.teacher.normalize(watch.images)).double(), wanted, atol=1e-5
    )
    same = fit(data, teacher(tmp_path / "t.safetensors", PETS, mean=data.mean, std=data.std))
    assert same.teacher.normalize(watch.images) is watch.images
    with pytest.raises(
        ValueError, match=r"normalisation .*t\.safetensors: .* std missing; save it with both, mean and"
    ):
        fit(data, teacher(tmp_path / "t.safetensors", PETS, mean=mean))
    with pytest.raises(ValueError, match=r"the normalisation of the teacher .*t\.safetensors: std must .* each > 0"):
        fit(data, teacher(tmp_path / "t.safetensors", PETS, mean=mean, std=(1.0, 0.0, 1.0)))


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def test_what_it_was_evaluated_with_is_contradicted_in_one_line(
    tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = images(pets)
    noted = {"image_size": 224, "crop_pct": 0.9, "interpolation": "bilinear", "mean": data.mean, "std": data.std}
    source = teacher(tmp_path / "t.safetensors", PETS, **noted)
    fit(data, source)
    assert lines(caplog) == (
        f"the teacher {source} was evaluated with image_size 224 (here 24), crop_pct 0.9 (here 0.95); "
        "it gets the student's images as they are"
    )
    with pytest.raises(
        ValueError, match=r"in_chans is 3, but the teacher .* was trained with 1: give --data.in_chans 1"
    ):
        fit(images(pets), teacher(tmp_path / "grey.safetensors", PETS, in_chans=1))


def test_data_that_knows_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = open_teacher(teacher(tmp_path / "t.safetensors", PETS, mean=(0.1,) * 3, std=(1.0,) * 3), in_chans=3)
    made = make_teacher(found, None)
    x = torch.randn(2, 3, 24, 24)
    assert made.normalize(x) is x
    assert "the data doesn't name its classes" in lines(caplog)
    assert "or the data doesn't note its mean and std: it gets the images with the data's" in lines(caplog)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is an artifact of icnets export; give a \.safetensors or \.ckpt file"):
        open_teacher(str(tmp_path / "net.onnx"), 3)
    for source in ("resnet50", "hf-hub:me/net", "me/net", "networks"):
        with pytest.raises(ValueError, match=rf"no checkpoint {source}; give a .* of save_pretrained .* or timm:NAME"):
            open_teacher(source, 3)
    (tmp_path / "folder").mkdir()
    teacher(tmp_path / "folder" / "model.safetensors", PETS)
    assert open_teacher(str(tmp_path / "folder"), 3).class_names == (PETS,)


def test_a_checkpoint_of_a_run_teaches(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from icnets.cli import main

    monkeypatch.chdir(tmp_path)
    options = ["--model.model", "test_resnet", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    small = ["--data.image_size", "24", "--data.batch_size", "4", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--name", "a", "--data.root", str(pets), *options, *small]) == 0
    (newest,) = Path("runs/a/checkpoints").glob("step-*.ckpt")
    found = open_teacher(str(newest), 3)
    assert found.class_names == (PETS,)
    assert (found.notes.image_size, found.notes.mean) == (24, images(pets).mean)
    numbers = write_classes(tmp_path / "numbers", **{"1": 8, "2": 8, "10": 8})
    for source in (newest.name, "best.safetensors"):
        taught = ["--model.teacher", f"runs/a/checkpoints/{source}"]
        assert main(["fit", "--name", "b", "--data.root", str(numbers), *options, *small, *taught]) == 2
    assert not Path("runs/b/checkpoints").exists()
    best = ["--model.init_from", "runs/a/checkpoints/best.safetensors"]
    assert main(["test", "--data.root", str(pets), *options[:2], *small, *best]) == 0
    assert main(["test", "--data.root", str(numbers), *options[:2], *small, *best]) == 2


# What weights to begin with say.


def test_a_start_of_other_classes_is_told(tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "start.safetensors"
    teacher(path, ["1", "10", "2"], mean=(0.5,) * 3, std=(0.5,) * 3, image_size=224)
    fit(images(pets), None, init_from=path)
    assert lines(caplog).split("\n") == [
        f"{path} was trained on 3 classes (1, 10, 2), the data has 3 classes (cat, dog, eel): "
        "what the last layer knows is of other classes",
        f"{path} was trained with mean (0.5, 0.5, 0.5) (here (0.485, 0.456, 0.406)), std (0.5, 0.5, 0.5) "
        "(here (0.229, 0.224, 0.225)); give --data... as it was, if that isn't meant",
    ]


@pytest.mark.parametrize("names", [["cat", "dog"], [*PETS, "fox", "gnu"]])
@pytest.mark.parametrize("network", ["resnet10t", "ic_resnet18"])
def test_a_start_with_another_number_of_classes_has_a_new_last_layer(
    tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture, names: list[str], network: str
) -> None:
    path = tmp_path / "start.safetensors"
    options = TINY if network == "resnet10t" else {"channels": [8, 8, 16, 16]}
    trained = create_model(network, num_classes=len(names), **({} if "ic" in network else {"ic": None}), **options)
    save(trained, path, metadata={"class_names": as_text(names)})
    module = ClassificationTask(network, 3, init_from=path, model_options=options)
    state, start = module.network.state_dict(), trained.state_dict()
    assert state["fc.weight"].shape[0] == 3
    assert all(torch.equal(value, start[key]) for key, value in state.items() if not key.startswith("fc."))
    compare_start(path, images(pets), trains=True)
    assert "the data has 3 classes (cat, dog, eel): the last layer is new" in lines(caplog)
    with pytest.raises(ValueError, match="give images of the same classes"):
        compare_start(path, images(pets), trains=False)


def test_a_start_that_does_not_fit_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    teacher(path, ["cat", "dog"])
    network = create_model("resnet10t", ic=None, num_classes=3, channels=[8, 8, 16, 24], stem_width=8)
    before, head = {k: v.clone() for k, v in network.state_dict().items()}, network.get_submodule("fc")
    with pytest.raises(ValueError, match="doesn't fit the model"):
        load_weights(network, path)
    assert network.get_submodule("fc") is head
    assert network.num_classes == 3
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# In Python.


def test_positions_in_python() -> None:
    network = nn.Linear(4, 5)
    x = torch.randn(3, 4)
    assert torch.equal(Teacher(network, classes=[4, 0])(x), network(x)[:, [4, 0]])
    taught = Teacher(network, classes=[4, 0])
    assert torch.equal(torch.compile(taught, backend="eager", fullgraph=True)(x), taught(x))
    assert make_teacher(taught, None) is taught
    with pytest.raises(ValueError, match=r"classes asks for class 5 of the teacher, which gives \(3, 5\)"):
        Teacher(network, classes=[5, 0])(x)
    with pytest.raises(ValueError, match=r"classes must be different positions from 0, at least one, got \[1, 1\]"):
        Teacher(network, classes=[1, 1])
    with pytest.raises(ValueError, match=r"classes must be different positions .* got cat"):
        Teacher(network, classes="cat")  # type: ignore[arg-type]
