"""What MODEL can be: an artifact, a checkpoint of a run, a named network; each predicts as its evaluation does."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

import icnets.timm_models
from deploy.export.artifacts import needs
from icnets import create_model, load
from icnets.cli import main
from icnets.data.data_module import ImageData
from icnets.open_network import open_network
from icnets.training.run_checkpoints import last_checkpoints
from predict.tiny import NOTES, checkpoint, network, plain_loop
from training.folders import write_classes, write_image

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "format",
    ["onnx", pytest.param("openvino", marks=pytest.mark.slow), pytest.param("torch-export", marks=pytest.mark.slow)],
)
def test_an_artifact_predicts_as_its_checkpoint(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs(format)
    checkpoint(Path("net.safetensors"))
    paths = [write_image(Path(f"photos/{i}.png"), seed=i) for i in range(5)]
    assert main(["export", "net.safetensors", "--format", format]) == 0
    (artifact,) = [str(p) for p in Path().glob("net.*") if p.suffix in (".onnx", ".xml", ".pt2")]
    assert main(["predict", artifact, "photos", "--out", "a.csv", "--top-k", "1"]) == 0
    assert "doesn't say" not in capsys.readouterr().err  # crop and interpolation went along
    expected = plain_loop(network(), paths).max(1)
    rows = rows_of("a.csv")
    assert [int(row["class_1"]) for row in rows] == expected.indices.tolist()
    found = torch.tensor([float(row["probability_1"]) for row in rows])
    torch.testing.assert_close(found, expected.values, rtol=0, atol=1e-3)
    for options, message in (
        (
            ["--grad-cam", "heat"],
            f"--grad-cam needs gradients, which the artifact {artifact} lacks; give its checkpoint",
        ),
        (["--image-size", "48"], f"{artifact} can't take images of 3×48×48: "),
        (["--device", "cuda"], "--device is 'cuda'"),
    ):
        assert main(["predict", artifact, "photos", *options]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"icnets: error: {message}")
    assert not Path("heat").exists()


def test_an_artifact_of_others(tmp_path: Path) -> None:
    program = torch.export.export(network(), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, "theirs.pt2")
    with pytest.raises(ValueError, match=r"theirs\.pt2 was not written by icnets export"):
        open_network("theirs.pt2")


def test_a_checkpoint_of_a_run_without_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(Path("photos"), ant=12, bee=12)
    new = [write_image(Path(f"new/{('ant', 'bee')[i // 2]}/{i}.png"), seed=50 + i, size=(50, 41)) for i in range(4)]
    fit = ["fit", "--config", str(CONF / "folder.yaml"), "--data.root", "photos", "--name", "run"]
    assert main([*fit, "--data.crop_pct", "0.7", "--data.interpolation", "bicubic"]) == 0
    options = {"image_size": 32, "in_chans": 1, "crop_pct": 0.7, "interpolation": "bicubic"}
    Path("all").mkdir()
    for split, folder in (("train", "photos"), ("test", "new")):
        Path("all", split).symlink_to(Path(folder).resolve())
    data = ImageData(Path("all"), **options)  # as icnets test reads them
    (images, _), *_ = data.test_dataloader()
    with torch.no_grad():
        expected = load("runs/run/checkpoints/best.safetensors")(images).softmax(1)
    shutil.rmtree("photos")  # rebuilding needs none of them
    best = Path("runs/run/checkpoints/best.ckpt")  # as earlier versions left it, beside the weights
    torch.save(
        torch.load(last_checkpoints(best.parent)[0], weights_only=True)
        | {"state_dict": {f"network.{k}": v for k, v in load(best.with_suffix(".safetensors")).state_dict().items()}},
        best,
    )
    for name in ("checkpoints/best.ckpt", "checkpoints/best.safetensors", ""):
        assert main(["predict", f"runs/run/{name}", "new", "--out", "files.csv"]) == 0
        rows = rows_of("files.csv")
        assert [row["path"] for row in rows] == [str(path) for path in new]
        for row, other in zip(rows, expected, strict=True):
            assert row["name_1"] == data.class_names[int(other.argmax())]
            for rank in (1, 2):
                index = data.class_names.index(row[f"name_{rank}"])
                assert float(row[f"probability_{rank}"]) == pytest.approx(float(other[index]), abs=2e-6)
    text = "images: shorter side bicubic to 45, the centre crop of 32 pixels, grey, mean 0.449"
    assert capsys.readouterr().err.count(text) == 3


def run_folder(change: str = "", notes: object = ("ant", "bee")) -> Path:
    """runs/a of a network as ``icnets fit`` leaves it, as far as rebuilding looks at it; returns its checkpoint."""
    folder = Path("runs/a/checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    options = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    model = create_model("ic_resnet18", num_classes=2, ic=icnets.ICConfig(warm_start="gain"), **options)
    state = {f"network.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "icnets": {"class_names": notes and list(notes)}}, folder / "best.ckpt")
    (folder.parent / "config.yaml").write_text(
        "model:\n  model: ic_resnet18\n  pretrained: true\n"
        "  model_options: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}\n"
        f"data:\n  root: gone\n  image_size: 48\n  mean: [0.1, 0.2, 0.3]\n{change}"
    )
    return folder / "best.ckpt"


def test_a_network_that_began_with_pretrained_weights_is_rebuilt_without_them() -> None:
    path = run_folder()
    model, notes, _, _ = open_network(path)
    assert torch.equal(model.state_dict()["conv1.gain"], torch.zeros(64))
    assert not model.training
    assert (notes.image_size, notes.mean, notes.class_names) == (48, (0.1, 0.2, 0.3), ["ant", "bee"])
    assert (notes.crop_pct, notes.interpolation) == (0.95, "bilinear")


def test_checkpoints_of_runs_that_cannot_be_rebuilt() -> None:
    path = run_folder(notes=None)
    with pytest.raises(ValueError, match=r"is of a network or of images of your own; give the \.safetensors"):
        open_network(path)
    with pytest.raises(ValueError, match=r"doesn't fit the network of its run's config\.yaml"):
        open_network(run_folder(notes=("ant", "bee", "cow")))
    config = path.parent.parent / "config.yaml"
    config.write_text("model:\n  model: {class_path: mine.net, init_args: {width: 4}}\ndata: {root: gone}\n")
    with pytest.raises(ValueError, match=r"is of a network or of images of your own; give the \.safetensors"):
        open_network(path)
    config.write_text("model: [")
    with pytest.raises(ValueError, match=r"config\.yaml, by which .*best\.ckpt is read, is missing or damaged"):
        open_network(path)
    config.unlink()
    with pytest.raises(ValueError, match=r"config\.yaml, by which .*best\.ckpt is read, is missing or damaged"):
        open_network(path)


def test_a_named_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create, given = create_model, {}

    def without_download(name: str, *, pretrained: bool, **kwargs: object) -> torch.nn.Module:
        given.update(name=name, pretrained=pretrained, **kwargs)
        return create(name, **kwargs)

    monkeypatch.setattr(icnets.timm_models, "create_model", without_download)
    model = open_network("resnet18.a1_in1k", pretrained=True)
    assert given == {"name": "resnet18.a1_in1k", "pretrained": True, "ic": None}
    assert (model.notes.image_size, model.notes.crop_pct, model.notes.interpolation) == (224, 0.95, "bicubic")
    assert model.notes.class_names is not None
    assert (len(model.notes.class_names), model.notes.class_names[2][:11]) == (1000, "great white")

    def offline(name: str, **kwargs: object) -> torch.nn.Module:
        raise RuntimeError("no route to host\nand so on")

    monkeypatch.setattr(icnets.timm_models, "create_model", offline)
    with pytest.raises(ValueError, match="can't get timm's pretrained weights of ic_resnet18: no route to host"):
        open_network("ic_resnet18", pretrained=True)


def test_networks_that_do_not_classify(capsys: pytest.CaptureFixture[str]) -> None:
    from icnets import save

    write_image(Path("x.png"))
    model = create_model("resnet10t", ic=None, num_classes=0, channels=(8, 8, 8, 8))
    save(model, "features.safetensors", metadata={**NOTES, "class_names": "a,b"})
    assert load("features.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    assert main(["predict", "features.safetensors", "x.png", "--out", "a.csv"]) == 0  # features look like logits
    assert "features.safetensors has 8 classes and 2 names; they are left out" in capsys.readouterr().err
    model = create_model("resnet10t", ic=None, features_only=True, channels=(8, 8, 8, 8))
    save(model, "maps.safetensors", metadata=NOTES)
    assert main(["predict", "maps.safetensors", "x.png"]) == 2
    assert "maps.safetensors gives 5 outputs; predict needs one" in capsys.readouterr().err
