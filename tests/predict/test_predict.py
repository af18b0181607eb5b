"""icnets predict, from the command line to its files."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from icnets.cli import main
from predict.tiny import CLASSES, MEAN, STD, checkpoint, network, plain_loop
from training.folders import write_image


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(Path("net.safetensors"))


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_equal(rows: list[dict[str, str]], expected: torch.Tensor) -> None:
    """Ranks, names and probabilities of rows, against probabilities (N, 3)."""
    ranked = expected.sort(dim=1, descending=True)
    for k in range(3):
        assert [int(row[f"class_{k + 1}"]) for row in rows] == ranked.indices[:, k].tolist()
        assert [row[f"name_{k + 1}"] for row in rows] == [CLASSES[i] for i in ranked.indices[:, k]]
        found = torch.tensor([float(row[f"probability_{k + 1}"]) for row in rows])
        torch.testing.assert_close(found, ranked.values[:, k], rtol=1e-4, atol=1e-6)


def broken(index: int, content: bytes) -> bytes:
    return [b"", b"no image", content[: len(content) // 2], content[:60]][index % 4]


def test_500_images_of_which_10_are_broken(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_image(Path(f"photos/{i % 7}/{i:03}.png"), seed=i, size=(40 + i % 9, 44)) for i in range(500)]
    bad = paths[3::50]
    for i, path in enumerate(bad[:-1]):
        path.write_bytes(broken(i, path.read_bytes()))
    Image.new("I;16", (40, 40)).save(bad[-1])  # which Pillow would clip to white
    assert main(["predict", "net.safetensors", "photos", "--out", "out.csv", "--batch-size", "32"]) == 1
    rows = rows_of("out.csv")
    assert [row["path"] for row in rows] == sorted(map(str, paths))
    unreadable = [row for row in rows if row["error"]]
    assert {row["path"] for row in unreadable} == set(map(str, bad))
    assert all(row["class_1"] == row["probability_3"] == "" for row in unreadable)
    good = [row for row in rows if not row["error"]]
    assert len(good) == 490
    expected = plain_loop(network(), [Path(row["path"]) for row in good])
    assert len(expected.argmax(1).unique()) > 1  # else agreement would say little
    assert_equal(good, expected)
    err = capsys.readouterr().err
    assert "10 of 500 images can't be read" in err
    assert all(f"  {path}: " in err for path in bad)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_image(Path(f"{i}.png"), seed=i) for i in range(3)]
    paths[1].write_bytes(b"")
    assert main(["predict", "net.safetensors", *map(str, paths), "--out", "a.json", "--top-k", "2"]) == 1
    err = capsys.readouterr().err
    content = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert (content["model"], content["images"], content["errors"]) == ("net.safetensors", 3, 1)
    wanted = {"image_size": 32, "in_chans": 3, "mean": [*MEAN], "std": [*STD], "crop_pct": 0.8}
    assert content["preprocessing"] == {**wanted, "interpolation": "bicubic"}
    expected = plain_loop(network(), [paths[0], paths[2]]).topk(2)
    first, second, third = content["predictions"]
    assert (second["classes"], second["path"]) == ([], "1.png")
    assert second["error"] == "it is no image by its content"
    for found, values, indices in zip((first, third), expected.values, expected.indices, strict=True):
        assert [c["class"] for c in found["classes"]] == indices.tolist()
        assert [c["name"] for c in found["classes"]] == [CLASSES[i] for i in indices]
        torch.testing.assert_close(torch.tensor([c["probability"] for c in found["classes"]]), values)
        assert found["error"] is None
    assert "images: shorter side bicubic to 40, the centre crop of 32 pixels, mean 0.5, 0.4, 0.3" in err
    assert "default" not in err
    assert "100%" not in err  # no bar without a terminal


def test_names_that_would_break_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"a,b.png", b'quo"te.png', b"two\nlines.png", b"\xff\xfe.png", b"\x1b[31mred.png", b" space .png"]
    content = write_image(Path("x.png")).read_bytes()
    os.mkdir("odd")
    for name in names:
        Path("odd", os.fsdecode(name)).write_bytes(content)
    Path("odd", "b\x1bad.png").write_bytes(b"")
    assert main(["predict", "net.safetensors", "odd", "--out", "a.csv"]) == 1
    assert main(["predict", "net.safetensors", "odd", "--out", "a.json", "--top-k", "1"]) == 1
    written = sorted(["a,b.png", 'quo"te.png', "two\nlines.png", "\\xff\\xfe.png", "\x1b[31mred.png", " space .png"])
    rows = rows_of("a.csv")
    assert sorted(row["path"].removeprefix("odd/") for row in rows if not row["error"]) == written
    assert len({row["probability_1"] for row in rows if not row["error"]}) == 1
    found = json.loads(Path("a.json").read_text(encoding="utf-8"))["predictions"]
    assert [item["path"] for item in found] == [row["path"] for row in rows]
    out, err = capsys.readouterr()
    assert "odd/b\\x1bad.png: it is no image" in err
    assert "\x1b" not in out + err


def test_workers_and_a_bar_change_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(9):
        write_image(Path(f"photos/{i}.png"), seed=i)
    Path("photos/4.png").write_bytes(b"")
    assert main(["predict", "net.safetensors", "photos", "--out", "one.csv", "--batch-size", "4"]) == 1
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    options = ["--batch-size", "4", "--workers", "1"]
    assert main(["predict", "net.safetensors", "--out", "two.csv", *options, "photos"]) == 1
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()
    assert "9/9" in capsys.readouterr().err


def test_pictures() -> None:
    for i in range(3):
        write_image(Path(f"photos/a b/{i}.png"), seed=i)
    Path("photos/a b/1.png").write_bytes(b"")
    options = ["--out", "out.csv", "--grad-cam", "heat"]
    assert main(["predict", "net.safetensors", "photos", *options, "--batch-size", "2"]) == 1
    assert sorted(os.listdir("heat")) == ["000001-0.png", "000003-2.png"]  # the numbers of their rows
    with Image.open("heat/000003-2.png") as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(Path("bare.safetensors"), class_names=None, mean=None, std=None, crop_pct=None, image_size=None)
    write_image(Path("x.png"))
    assert main(["predict", "bare.safetensors", "x.png", "--image-size", "32", "--std", "0.2,0.2,0.2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].count(",,") >= 3  # no names
    assert "bare.safetensors doesn't say --mean, --crop-pct: these are defaults" in err
    assert "std 0.2, 0.2, 0.2" in err
    assert "--image-size" not in err


def test_an_output_that_is_no_number_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    from icnets import save
    from predict.tiny import NOTES

    save(model, "nan.safetensors", metadata=NOTES)
    write_image(Path("x.png"))
    assert main(["predict", "nan.safetensors", "x.png", "--out", "a.csv"]) == 1
    assert [row["error"] for row in rows_of("a.csv")] == ["the network's output is not a number"]
    assert "1 of 1 image can't be predicted; they are in the output, with the reason:" in capsys.readouterr().err


def test_a_folder_of_save_pretrained_is_a_model() -> None:
    os.mkdir("folder")
    checkpoint(Path("folder/model.safetensors"))
    write_image(Path("x.png"))
    for model in ("folder", "net.safetensors"):
        assert main(["predict", model, "x.png", "--out", f"{model}.csv"]) == 0
    assert rows_of("folder.csv") == rows_of("net.safetensors.csv")


def test_nothing_is_left_of_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("icnets.predict.inference._predicted", interrupt)
    write_image(Path("x.png"))
    Path("old.csv").write_text("kept")
    before = sorted(os.listdir())
    assert main(["predict", "net.safetensors", "x.png", "--out", "old.csv"]) == 130
    assert (sorted(os.listdir()), Path("old.csv").read_text()) == (before, "kept")


MISTAKES = [
    ("net.safetensors", "the following arguments are required: PATHS"),
    ("net.safetensors nowhere", "there is no file or folder nowhere; check the path"),
    ("net.safetensors empty", "no images (.jpg, .png, .webp, ...) in empty"),
    ("net.safetensors none?.png", "there is no file or folder none?.png; check the path"),
    ("net.safetensors x.png --top-k 0", "--top-k is 0; it must be at least 1"),
    ("net.safetensors x.png --out a.tsv", "--out is a.tsv; it must end in .csv or .json, or be - for the terminal"),
    ("net.safetensors x.png --out no/a.csv", "the folder no of --out doesn't exist; create it first"),
    ("net.safetensors x.png list.csv --out list.csv", "--out is list.csv, which is read; give another name"),
    ("net.safetensors x.png --grad-cam x.png", "--grad-cam is x.png, which is a file; give another"),
    ("net.safetensors x.png --device abacus", "--device is 'abacus'; it must be cpu or cuda"),
    ("net.safetensors x.png --device cuda:99", "--device is 'cuda:99', but torch finds no such CUDA device here; *"),
    ("net.safetensors x.png --mean a", "argument --mean: invalid numbers value: 'a'"),
    ("net.safetensors x.png --mean 0,1", "mean has 2 values for 3 channels; give one per channel"),
    ("net.safetensors x.png --crop-pct 2", "crop_pct is 2.0; it must be greater than 0 and at most 1"),
    ("net.safetensors x.png --in-chans 1 --mean 0 --std 1", "net.safetensors can't take images of 1×32×32: *"),
    (
        "net.safetensors x.png --pretrained",
        "--pretrained goes with a network's name, but net.safetensors is a checkpoint",
    ),
    ("none.safetensors x.png", "there is no checkpoint none.safetensors; check the path"),
    ("none.ckpt x.png", "there is no checkpoint none.ckpt"),
    ("none.onnx x.png", "there is no artifact none.onnx; check the path"),
    ("cut.safetensors x.png", "cut.safetensors is not a whole safetensors file (*"),
    ("cut.pt2 x.png", "cut.pt2 can't be read as an artifact (*); export it again"),
    ("odd.safetensors x.png", "odd.safetensors can't be used: it notes crop_pct as 'half', which makes no sense; *"),
    ("two.safetensors x.png", "mean has 2 values for 3 channels; give one per channel"),
    ("nan.safetensors x.png", "std is (1.0, 1.0, nan); its values must be numbers*"),
    ("far.safetensors x.png", "interpolation is 'f'; it must be one of bilinear*"),
    ("net.safetensors x.png --mean nan,nan,nan", "mean is (nan, nan, nan); its values must be numbers, on the scale *"),
    ("net.safetensors x.png ", "one of the paths is empty; give image files or folders of them"),
    ("x.png x.png", "x.png isn't a file of weights*"),
    ("resnet19 x.png", "there is no file resnet19, and timm * has no network 'resnet19'; near it: *"),
    ("resnet18 x.png", "resnet18 alone has random weights; give --weights FILE, or --pretrained"),
    ("resnet18.none x.png --pretrained", "can't get timm's pretrained weights of resnet18.none: *"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("x.png"))
    os.mkdir("empty")
    Path("empty.txt").write_text("\n")
    Path("list.csv").write_text("path\nx.png\n")
    Path("cut.safetensors").write_bytes(Path("net.safetensors").read_bytes()[:3000])
    Path("cut.pt2").write_bytes(b"PK nonsense")
    odd = {
        "odd": {"crop_pct": "half"},
        "two": {"mean": "0,1"},
        "nan": {"std": "1,1,nan"},
        "far": {"interpolation": "f"},
    }
    for name, notes in odd.items():
        if name in words:
            checkpoint(Path(f"{name}.safetensors"), **notes)
    before = sorted(os.listdir())
    assert main(["predict", *words.split(" ")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    start, *rest = message.split("*")
    assert err.startswith(f"icnets: error: {start}")
    assert all(part in err for part in rest)
    assert sorted(os.listdir()) == before
