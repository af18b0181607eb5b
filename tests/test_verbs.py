"""``icnets.fit`` against the program: the same training, to the same numbers."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import icnets
from icnets.cli import main
from icnets.data.data_module import ImageData
from training.folders import write_classes

pytestmark = pytest.mark.usefixtures("own_run")
SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


def rows(run: str) -> list[dict[str, str]]:
    with open(f"runs/{run}/history.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_weights(first: str, second: str) -> bool:
    states = [icnets.load(f"runs/{run}/checkpoints/best.safetensors").state_dict() for run in (first, second)]
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_same_numbers_as_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "photos", ant=12, bee=12)
    options = ["--data.image_size", "32", "--trainer.max_epochs", "2", "--seed_everything", "3"]
    model = ["--model", "ic_resnet18", "--model.model_options", "{channels: [8, 8, 16, 16]}"]
    assert main(["fit", "photos", *model, *options, "--name", "command"]) == 0
    said = capsys.readouterr().out
    kinds = {"model_options": {"channels": [8, 8, 16, 16]}, "image_size": 32, "max_epochs": 2}
    result = icnets.fit("ic_resnet18", "photos", name="python", seed=3, **kinds)
    assert rows("python") == rows("command")
    assert same_weights("python", "command")
    print(result)
    assert [line.rpartition(" s")[0] if " s " in line else line for line in capsys.readouterr().out.splitlines()][
        -2:
    ] == [line.replace("command", "python") for line in said.splitlines()[-2:]]
    assert result.folder == Path("runs/python")
    assert result.weights is not None
    assert result.weights.is_file()
    assert result.top1 == max(float(row["val/top1"]) for row in rows("python"))


def test_the_program_goes_on_with_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", ant=12, bee=12)
    ic = icnets.ICConfig(layers="kxk")
    options = {"model_options": SMALL, "ic": ic, "image_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    result = icnets.fit("resnet10t", root, name="a", max_epochs=1, **options)
    assert str(result).endswith("next: icnets report runs/a")
    assert main(["test", "--name", "a"]) == 0
    assert main(["fit", "--name", "a", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["model"]["ic"]["layers"] == "kxk"
    assert len(rows("a")) == 2


class Named(Dataset):
    """Images that are bright where they are of the second class, moved at random."""

    classes = ("dark", "bright")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 8), float(index % 2)) + 0.1 * torch.randn(3, 8, 8), index % 2


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_a_module_and_two_datasets() -> None:
    trained = network()
    quiet = {"enable_progress_bar": False, "lr": 0.5}
    result = icnets.fit(trained, (Named(), Named()), name="a", max_epochs=3, **quiet)
    assert (result.top1, result.stopped) == (1.0, "")
    assert result.weights is not None
    icnets.load(result.weights, network())
    (last,) = (result.folder / "checkpoints").glob("step-*.ckpt")
    kept = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[f"network.{key}"]) for key, value in trained.state_dict().items())
    icnets.fit(network(), (Named(), Named()), name="b", max_epochs=3, workers=1, **quiet)
    assert rows("a") == rows("b")  # what a dataset draws depends on the seed, not on who reads it
    icnets.fit(network(), (Named(), Named()), name="c", max_epochs=3, seed=1, **quiet)
    assert rows("a") != rows("c")


def normed() -> nn.Module:
    torch.manual_seed(5)
    first = nn.Conv2d(3, 4, 3)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_a_trained_module_is_fine_tuned(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    model, options = normed(), {"max_epochs": 1, "enable_progress_bar": False}
    icnets.fit(model, (Named(), Named()), name="new", **options)
    assert "parameters, random weights; images:" in (said := capsys.readouterr().out)
    assert "lr 0.1" in said
    icnets.fit(model, (Named(), Named()), name="again", ic={"layers": "all"}, **options)
    assert "parameters, the weights it has; images:" in (said := capsys.readouterr().out)
    assert "lr 0.01 (fine-tuning: a tenth of the usual, times 0.1 for what IC adds" in said
    assert any("ic.warm_start is none, which changes what the trained network computes" in m for m in caplog.messages)


def test_what_is_refused_stays_as_it_was() -> None:
    model, other = normed(), nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="3"):
        icnets.fit(model, (Named(), Named()), teacher=other, ic=icnets.ICConfig(), enable_progress_bar=False)
    assert type(model[0]) is nn.Conv2d
    assert all(torch.equal(value, normed().state_dict()[key]) for key, value in model.state_dict().items())


def test_the_run_of_a_module_has_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    result = icnets.fit(normed(), (Named(), Named()), name="a", max_epochs=1, enable_progress_bar=False)
    assert str(result).endswith("next: icnets report runs/a")
    assert main(["report", "runs/a"]) == 0
    page = Path("runs/a/report.html").read_text()
    assert "Validation error by epoch" in page
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["model"]["model"] == "Sequential"
    assert main(["fit", "--name", "a", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 2
    assert "PairData is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["python", "command"])
def test_images_are_normalised_as_those_of_the_weights_were(way: str, tmp_path: Path) -> None:
    """As the file notes it, else as timm has it for the network; what is given goes before."""
    root, name = write_classes(tmp_path / "photos", ant=12, bee=12), "tf_efficientnet_lite0"
    icnets.save(
        icnets.create_model(name, ic=None), "noted.safetensors", metadata={"mean": "0.1,0.2,0.3", "std": "1,1,1"}
    )
    torch.save(icnets.create_model(name, ic=None).state_dict(), "plain.pth")
    halves, given = [0.5, 0.5, 0.5], [0.4, 0.4, 0.4]
    for run, file, mean, expected in (
        ("plain", "plain.pth", None, halves),
        ("noted", "noted.safetensors", None, [0.1, 0.2, 0.3]),
        ("given", "plain.pth", given, given),
        ("random", None, None, None),
    ):
        if way == "python":
            options = {"init_from": file, "max_epochs": 1, "enable_progress_bar": False, "limit_train_batches": 1}
            options |= {} if mean is None else {"mean": mean, "std": halves}
            icnets.fit(name, root, name=run, image_size=32, **options)
        else:
            words = ["fit", str(root), "--model", name, "--data.image_size", "32", "--name", run]
            words += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
            words += [] if file is None else ["--weights", file]
            words += [] if mean is None else [f"--data.mean={mean}", f"--data.std={halves}"]
            assert main(words) == 0
        assert yaml.safe_load(Path(f"runs/{run}/config.yaml").read_text())["data"].get("mean") == expected
        found = icnets.checkpoint.read(f"runs/{run}/checkpoints/best.safetensors")[2]["mean"]
        assert [float(v) for v in found.split(",")] == (expected or [0.485, 0.456, 0.406])


def test_a_data_module() -> None:
    data = ImageData(train_size=40, image_size=16)
    options = {"model_options": SMALL, "max_epochs": 1, "enable_progress_bar": False}
    icnets.fit("resnet10t", data, name="module", **options)
    icnets.fit("resnet10t", train_size=40, image_size=16, name="options", **options)
    assert rows("module") == rows("options")


def test_mistakes() -> None:
    images = TensorDataset(torch.zeros(20, 3, 8, 8), torch.zeros(20))
    for arguments, options, message in (
        (("resnet10t", "photos"), {"batch_sise": 3}, r"unknown option batch_sise; did you mean batch_size\?"),
        (("resnet10t", "photos"), {"name": "../a"}, r"name is '\.\./a', which isn't below runs"),
        (("resnet10t", 3), {}, "data is a int; give a folder, a pair of datasets"),
        (("resnet10t", (images, images)), {}, "the TensorDataset has no attribute classes; give num_classes"),
        (("resnet10t", (images, images)), {"num_classes": 2, "hflip": 0.1}, "hflip is an option of a folder of images"),
        (("resnet10t", "nowhere"), {}, "nowhere is not a folder"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            icnets.fit(*arguments, **options)
    assert not Path("runs").exists()
    options = {"model_options": SMALL, "max_epochs": 1, "enable_progress_bar": False, "train_size": 40, "name": "a"}
    icnets.fit("resnet10t", **options)
    with pytest.raises(ValueError, match="runs/a holds a run already"):
        icnets.fit("resnet10t", **options)
    icnets.fit("resnet10t", overwrite=True, **options)
