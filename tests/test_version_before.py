"""What version 0.1 wrote, read by this one: the same outputs, the same weights after resuming, the same tables.

tests/fixtures/version_0_1/make.py made the files, and what was expected of them, with the code of commit b6b6cf9.
Everything goes through public names and the command line, wherever the code behind them lies.
"""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from fixtures.version_0_1.shared import Own, kernels, text_of
from icnets import fuse_, load, save
from icnets.cli import main
from icnets.hub import from_pretrained
from training.newest import weights_of

BEFORE = Path(__file__).resolve().parent / "fixtures" / "version_0_1"
MACHINE = json.loads((BEFORE / "machine.json").read_text(encoding="utf-8"))
SAME_MACHINE = (torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()) == (
    *(MACHINE["torch"], MACHINE["capability"]),
    1,
)
EXPECTED = BEFORE / "expected" / kernels()
NETWORKS = ("named", "gain", "own", "basic")
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # of sums in another order, where the machine or the operators are others


@pytest.fixture
def files(own_run: None) -> Path:
    """A copy of all files, in which the test is."""
    shutil.copytree(BEFORE, Path.cwd(), dirs_exist_ok=True)
    return Path.cwd()


def require_same(found: Tensor, expected: Tensor, what: str, *, exact: bool = True) -> None:
    """Bit for bit where torch and the processor are those of the fixtures; else but for rounding."""
    if SAME_MACHINE and exact:
        assert torch.equal(found, expected), what
    else:
        torch.testing.assert_close(found, expected, **ROUNDING, msg=lambda text: f"{what}: {text}")


def network(name: str) -> nn.Module:
    return load(BEFORE / "networks" / f"{name}.safetensors", Own() if name == "own" else None)


def header(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    """A checkpoint's metadata, and in it what rebuilds the network."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    return metadata, json.loads(metadata.pop("icnets"))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


# Networks.


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_it_did(name: str) -> None:
    x, expected = (
        load_file(BEFORE / "networks" / "inputs.safetensors")["x"],
        load_file(EXPECTED / "outputs.safetensors"),
    )
    model = network(name)
    with torch.no_grad():
        require_same(model(x), expected[name], name)
        fuse_(model, x)
        torch.testing.assert_close(model(x), expected[f"{name}, deployed"], **ROUNDING)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_weights_of_its_file_and_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    path, again = BEFORE / "networks" / f"{name}.safetensors", tmp_path / "again.safetensors"
    model, tensors = network(name), load_file(path)
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[key], tensors[key]) and state[key].dtype == tensors[key].dtype for key in tensors)
    metadata, before = header(path)
    save(model, again, metadata={key: value for key, value in metadata.items() if key != "format"})
    now_metadata, now = header(again)
    assert now_metadata == metadata
    assert {key: now[key] for key in before if key != "checksum"} == {
        k: v for k, v in before.items() if k != "checksum"
    }
    written = load_file(again)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensors[key]) for key in tensors)


def test_the_units_of_a_network_are_those_of_its_options() -> None:
    kinds = {name: [type(m).__name__ for m in network(name).modules()] for name in NETWORKS}
    assert kinds["gain"].count("ICLinear") == 1
    assert kinds["gain"].count("ICConv2d") == kinds["named"].count("ICConv2d") - 1  # the stem's first
    assert kinds["own"].count("ICLinear") == 2
    assert not any(kind.startswith("IC") for kind in kinds["basic"])
    assert sum(key.endswith(".gain") for key in network("gain").state_dict()) == kinds["gain"].count("ICConv2d") + 1


def test_a_folder_of_the_hub(files: Path) -> None:
    tensors = load_file("hub/model.safetensors")
    state = from_pretrained("hub").state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[key], tensors[key]) for key in tensors)


# Runs of fit.


@pytest.mark.parametrize("name", ["plain", "taught"])
def test_a_run_that_was_stopped_in_an_epoch_ends_with_the_same_weights(
    name: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--runs", "trainings", "--name", name, "--ckpt_path", "last"]) == 0
    assert f"going on from trainings/{name}/checkpoints/step-000000008.ckpt" in capsys.readouterr().out
    found = weights_of(files / "trainings" / name / "checkpoints")
    expected = load_file(EXPECTED / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Of short epochs, later versions take statistics of batch norms anew; the weights are the same.
        if not key.endswith(("running_mean", "running_var")):
            # Gradients are summed in another order since: the kernels write their vectors out themselves.
            require_same(found[key], value, key, exact=False)
    assert [row["step"] for row in rows_of(files / "trainings" / name / "history.csv")] == ["6", "12", "18"]


# Predictions.

MODELS = {
    "named.csv": "networks/named.safetensors",
    "ckpt.csv": "trainings/plain/checkpoints/step-000000008.ckpt",
    "onnx.csv": "named.onnx",
    "pt2.csv": "named.pt2",
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions(name: str, files: Path) -> None:
    assert main(["predict", MODELS[name], "images/val", "--out", "found.csv"]) == 0
    expected = files / "expected" / ("" if name in ("onnx.csv", "pt2.csv") else kernels()) / name
    found, before = rows_of(Path("found.csv")), rows_of(expected)
    assert len(found) == len(before) == 9
    for row, old in zip(found, before, strict=True):
        assert row.keys() == old.keys()
        for key, value in old.items():
            if key.startswith("probability"):  # engines have versions of their own
                assert float(row[key]) == pytest.approx(float(value), rel=1e-4)
            else:
                assert row[key] == value


# Comparisons and studies.


def test_the_report_of_a_comparison(files: Path) -> None:
    assert main(["report", "compare", "--out", "page.html", "--images", "2"]) == 0
    found = text_of(Path("page.html").read_text(encoding="utf-8"))
    text = (files / "expected" / "report.txt").read_text(encoding="utf-8")
    # Grad-CAM leaves the image its colours by now.
    text = text.replace("the brighter, the more; all grey, nowhere", "the warmer, the more; without colour, nowhere")
    # MACs stand in the table; a chart of them is gone.
    expected = [line for line in text.splitlines() if not line.startswith("Test error against million MACs")]
    # What is looked up in the networks anew may be rounded otherwise on another machine.
    end = len(expected) if SAME_MACHINE else expected.index("What it confuses")
    assert found[:end] == expected[:end]


def test_the_card_of_a_comparison(files: Path) -> None:
    network = "compare/checkpoints/ic-plus-wld-warm-start-seed0.safetensors"
    assert main(["hub", "save", network, "again/hub", "--description", "compare/results.md", "--title", "small"]) == 0
    found, before = (Path(folder, "README.md").read_text(encoding="utf-8") for folder in ("again/hub", "hub"))
    now, then = (yaml.safe_load(text.split("---\n")[1]) for text in (found, before))
    # timm itself doesn't load it any more, and accuracies stand in the table only.
    then["tags"].remove("timm")
    assert now == {key: value for key, value in then.items() if key not in ("metrics", "model-index")}
    assert Path("compare/results.md").read_text(encoding="utf-8").strip() in found
    assert ", ".join(f"**{i}** {i}" for i in range(10)) in found  # the checkpoint's classes, which are digits


def recipe_of(study: dict[str, Any]) -> str:
    """The file of a recipe for ``icnets compare`` that says what a study of version 0.1 said."""
    basic = study["networks"][0]
    study["network"] = {"name": basic.pop("model"), "options": basic.pop("options")}
    for method in study["methods"]:
        if "wld" in method:
            method["wld"] = {"schedule": {"weight": 1.0}}  # which was the default
    Path("recipe.yaml").write_text(json.dumps(study), encoding="utf-8")
    return "recipe.yaml"


def figures_of(row: str) -> tuple[str, list[float]]:
    """The first cell of a table's row, and its mean with its interval and the difference with its."""
    found = re.findall(r"[+−]?\d+\.\d\d", row.partition(" ×")[0])[:6]
    return re.split(r"  +", row.strip())[0], [float(f.replace("−", "-")) for f in found]


def test_a_finished_study_trains_nothing_and_says_the_same(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def runs() -> list[str]:
        return [line for line in Path("study/lines.jsonl").read_text("utf-8").splitlines() if '"kind":"run"' in line]

    before = runs()
    assert main(["compare", "--config", recipe_of(json.loads(Path("study.yaml").read_text("utf-8")))]) == 0
    assert runs() == before
    out = capsys.readouterr().out
    assert "12 runs, 0 to do" in out
    expected = (files / "expected" / "study.txt").read_text(encoding="utf-8").partition("accuracy, %")[2]
    accuracies = dict(map(figures_of, expected.splitlines()[2:8]))
    errors = dict(map(figures_of, out.partition("error, %")[2].splitlines()[2:8]))
    assert list(accuracies) == list(errors)
    for name, (mean, low, high, *difference) in accuracies.items():  # of accuracy; now of error
        # Two seeds: what was their interval is now the two values, whose half distance is 1 / 12.706 of its half width.
        now = [100 - mean, *(100 - mean + sign * (high - low) / 2 / 12.7062 for sign in (-1, 1))]
        if difference:
            middle, least, most = difference
            now += [-middle, *(-middle + sign * (most - least) / 2 / 12.7062 for sign in (-1, 1))]
        assert errors[name][: len(now)] == pytest.approx(now, abs=0.0121)


def test_a_study_that_was_killed_trains_what_is_missing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the basic network, whose teachers and starts are in the study's folder."""
    path, study = Path("study/lines.jsonl"), json.loads(Path("study.yaml").read_text(encoding="utf-8"))
    study["parts"][0]["networks"] = ["basic"]
    lines = path.read_text(encoding="utf-8").splitlines()
    *done, last = [line for line in lines if json.loads(line).get("network", "basic") == "basic"]
    assert len(done) == 1 + 5  # the study's own line, and its runs but for the last
    path.write_text("\n".join([*done, last[:40]]), encoding="utf-8")  # killed while it wrote a line
    assert main(["compare", "--config", recipe_of(study)]) == 0
    assert "6 runs, 1 to do" in capsys.readouterr().out
    runs = [line for line in path.read_text(encoding="utf-8").splitlines() if '"kind":"run"' in line]
    assert runs[:-1] == done[1:]
    found, before = json.loads(runs[-1]), json.loads(last)
    assert found.keys() == before.keys()
    assert [found[key] for key in ("id", "method", "seed")] == [before[key] for key in ("id", "method", "seed")]
    # Not what is measured afterwards: later versions take statistics of batch norms anew.
    assert found["train_loss"] == pytest.approx(before["train_loss"], rel=1e-3)
