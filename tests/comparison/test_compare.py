import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import icnets
from icnets.cli.compare import main, read_settings
from icnets.comparison.comparison_table import comparison_table
from icnets.comparison.planned_runs import plan
from icnets.comparison.run_files import read_run
from icnets.comparison.runs import figures, make_data
from icnets.comparison.settings import Method, Network, Settings
from icnets.profile.measure import agreement

RECIPE = """
seeds: [3, 1]
workers: 1
latency_rounds: 2
data: {train_size: 100, val_fraction: 0.2, image_size: 16, batch_size: 50}
network: {name: resnet10t, options: {channels: [8, 8, 8, 8], stem_width: 8}}
training: {epochs: 2, extra_epochs: 1}
methods:
  - {name: basic}
  - {name: "basic, trained on", start: basic}
  - {name: IC, start: basic, ic: {warm_start: gain}, control: "basic, trained on"}
  - {name: IC + WLD, start: basic, ic: {warm_start: calibrate}, wld: true}
  - {name: SE, network: seresnet18, options: {channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}
"""
FOLDER = ["--data.train_size", "null", "--data.val_fraction", "0.25", "--data.image_size", "24"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def out(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["--config", str(recipe), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def record(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def _runs(record: dict, method: str) -> dict[int, dict]:
    return {run["seed"]: run for run in record["runs"] if run["method"] == method}


def test_record_is_complete(record: dict) -> None:
    assert record["schema"] == 1
    assert record["settings"]["seeds"] == [3, 1]
    assert record["data"]["images"] == {"train": 100, "val": 200, "test": 797}
    assert {"icnets", "torch", "timm", "lightning"} <= record["versions"].keys()
    assert "--config" in record["command"]
    names = ["basic", "basic, trained on", "IC", "IC + WLD", "SE"]
    assert [row["name"] for row in record["methods"]] == names
    assert sorted((r["method"], r["seed"]) for r in record["runs"]) == sorted((n, s) for n in names for s in (1, 3))
    for run in record["runs"]:
        assert [e["epoch"] for e in run["history"]] == ([1, 2] if run["method"] in ("basic", "SE") else [1])
        assert 0 < run["error"] <= 100
        assert run["seconds"] == run["history"][-1]["seconds"] > 0
        assert Path(run["checkpoint"]).is_file()


def test_the_same_command_again_runs_nothing(
    recipe: Path, out: Path, record: dict, capsys: pytest.CaptureFixture
) -> None:
    before = (out / "lines.jsonl").read_bytes()
    assert main(["--config", str(recipe), "--out", str(out)]) == 0
    assert "10 runs, 0 to do" in capsys.readouterr().out
    assert (out / "lines.jsonl").read_bytes() == before
    again = json.loads((out / "results.json").read_text())
    clock = ("created", "seconds", "machine")
    assert {k: v for k, v in again.items() if k not in clock} == {k: v for k, v in record.items() if k not in clock}


def test_other_images_are_another_comparison(recipe: Path, out: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"10 of 10 runs in .* are none of this comparison.*--prune true"):
        main(["--config", str(recipe), "--out", str(out), "--data.root", str(folder), *FOLDER])


def test_intervals_are_those_of_the_runs(record: dict) -> None:
    basic, ic = _runs(record, "basic"), _runs(record, "IC")
    control = _runs(record, "basic, trained on")
    row = next(row for row in record["methods"] if row["name"] == "IC")
    mean = sum(run["error"] for run in ic.values()) / 2
    assert row["error"]["mean"] == pytest.approx(mean)
    for key, other in (("to_basic", basic), ("to_control", control)):
        differences = [ic[seed]["error"] - other[seed]["error"] for seed in (1, 3)]
        assert row[key]["mean"] == pytest.approx(sum(differences) / 2)
        # Two values have no interval: they are shown as they are.
        assert (row[key]["low"], row[key]["high"]) == (None, None)
        assert [row[key]["least"], row[key]["most"]] == pytest.approx(sorted(differences))


def test_a_control_is_named_even_where_its_difference_is_the_one_to_basic(record: dict, out: Path) -> None:
    run = read_run(out)
    rows = [replace(row, to_control=row.to_basic) if row.name == "IC" else row for row in run.rows]
    table = comparison_table(rows, run.settings, record["data"])
    cells = next(cells for cells in table.rows if cells[0] == "IC")
    assert cells[3] == cells[2] != ""
    assert any("basic, trained on for IC" in note for note in table.notes)


def test_costs_tell_the_unit_apart(record: dict) -> None:
    rows = {row["name"]: row["cost"] for row in record["methods"]}
    assert rows["basic"]["parameters"]["ic"] == rows["basic"]["macs"]["ic"] == 0
    assert rows["basic"]["latency"]["ratio"] == 1.0
    assert rows["IC"]["parameters"]["total"] - rows["IC"]["parameters"]["ic"] == rows["basic"]["parameters"]["total"]
    # w', b1 and the gain of both warm starts: three for each of the 126 output channels.
    assert rows["IC"]["parameters"]["ic"] == rows["IC + WLD"]["parameters"]["ic"] == 3 * 126
    assert rows["SE"]["parameters"]["total"] != rows["basic"]["parameters"]["total"]


@pytest.mark.slow
def test_warm_starts_begin_where_the_basic_network_ended(record: dict, out: Path) -> None:
    basic = _runs(record, "basic")
    for name, least in (("basic, trained on", 1.0), ("IC", 1.0), ("IC + WLD", 0.9)):
        for seed, run in _runs(record, name).items():
            assert run["agreement"] >= least
            if least == 1.0:
                assert run["start_error"] == pytest.approx(basic[seed]["history"][-1]["val_error"], abs=1e-3)
    row = next(row for row in record["methods"] if row["name"] == "IC")
    assert row["reached"] == {"epochs": 0, "seconds": 0.0, "seeds": 2, "of": 2}
    assert _runs(record, "SE")[1]["agreement"] is None


def test_checkpoints_hold_the_networks_that_were_measured(record: dict, out: Path) -> None:
    data = make_data({"train_size": 100, "val_fraction": 0.2, "image_size": 16, "batch_size": 50}, 1)
    for name in ("basic", "IC + WLD"):
        run = _runs(record, name)[1]
        model = icnets.load(run["checkpoint"])
        assert figures(model, data.test_dataloader())["error"] == pytest.approx(run["error"])
    assert list(icnets.ic_parameters(model))
    basic = icnets.load(_runs(record, "basic")[1]["checkpoint"])
    assert agreement(basic, model, data.test_dataloader()) < 1  # it has been trained on


def test_files(out: Path, record: dict) -> None:
    text = (out / "results.md").read_text()
    assert "| IC + WLD |" in text
    assert all(sentence in text for sentence in record["verdicts"])
    assert len(record["verdicts"]) == 2
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def _without_times(record: dict) -> list:
    runs = sorted(record["runs"], key=lambda run: (run["method"], run["seed"]))
    keep = ("method", "seed", "error", "start_error", "agreement")
    return [
        ({k: run[k] for k in keep}, [(e["epoch"], e["train_loss"], e["val_error"]) for e in run["history"]])
        for run in runs
    ]


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(recipe: Path, record: dict, tmp_path: Path) -> None:
    assert main(["--config", str(recipe), "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    other = json.loads((tmp_path / "two" / "results.json").read_text())
    assert other["machine"]["workers"] == 2
    assert _without_times(other) == _without_times(record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for kind, low in (("dark", 0), ("light", 128)):
        (root / kind).mkdir()
        for i in range(16):
            pixels = torch.randint(low, low + 127, (20, 20, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / kind / f"{i}.png")
    return root


def test_a_folder_of_ones_own(recipe: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--config", str(recipe), "--data.root", str(folder), *FOLDER, "--data.batch_size", "8"]
    assert main([*arguments, "--out", str(tmp_path), "--training.epochs", "1", "--seeds", "[5]"]) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["settings"]["seeds"] == [5]
    assert record["data"]["classes"] == ["dark", "light"]
    assert record["data"]["arguments"]["image_size"] == 24
    assert len(record["runs"][0]["history"]) == 1
    assert all(row["to_basic"]["low"] is None for row in record["methods"][1:])
    printed = capsys.readouterr().out
    assert "one seed can't tell" in printed
    assert "your own images" not in printed


def test_the_command_line_overrides_the_recipe(recipe: Path, folder: Path) -> None:
    settings = read_settings([f"--config={recipe}", "--data.root", str(folder), "--data.image_size", "40"])
    assert settings.data["image_size"] == 40
    assert settings.data["batch_size"] == 50
    assert settings.seeds == [3, 1]
    settings = read_settings([f"--config={recipe}", "--seeds", "[7]"])
    assert settings.data["image_size"] == 16
    assert settings.seeds == [7]


def test_settings_of_earlier_versions_are_dropped_from_recipes_and_told(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, path = read_settings(["--config", str(recipe)]), tmp_path / "earlier.yaml"
    path.write_text(recipe.read_text() + "\ncost_rounds: 3\nsave_checkpoints: true\nfolder: {seeds: [5]}\n")
    assert read_settings(["--config", str(path)]) == before
    for name in ("cost_rounds", "save_checkpoints", "folder"):
        assert f"{name} is left out: there is no option {name} any more" in caplog.text
    assert caplog.text.count("cost_rounds is left out") == 1
    with pytest.raises(ValueError, match="no option cost_rounds any more: training steps aren't timed; leave it out"):
        read_settings(["--config", str(recipe), "--cost_rounds", "3"])


def test_the_demos_recipe_is_what_it_says() -> None:
    path = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    settings = read_settings(["--config", str(path)])
    assert len(settings.seeds) >= 3
    names = [method.name for method in settings.methods]
    assert names[0] == "basic"
    assert any(m.ic and not m.wld for m in settings.methods)
    assert any(m.ic and m.wld for m in settings.methods)
    assert "basic, trained on" in names
    assert settings.data.get("root") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no methods.*recipes/demo.yaml"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "RECIPE", "--sedes", "[1]"], "sedes"),
        (["--config", "RECIPE", "--seeds", "[1, 1]"], r"\[1, 1\].*each once"),
        (["--config", "RECIPE", "--seeds", "many"], "seeds"),
        (["--config", "RECIPE", "--training.epochs", "0"], "epochs is 0"),
        (["--config", "RECIPE", "--training.lr=-1"], "lr is -1"),
        (["--config", "RECIPE", "--training.weight_decay=-1"], "weight_decay is -1"),
        (["--config", "RECIPE", "--wld.temperature", "0"], "temperature.* 0"),
        (["--config", "RECIPE", "--wld.schedule.kind", "sine"], "sine.*hold-cosine"),
        (["--config", "RECIPE", "--workers", "0"], "workers is 0"),
        (["--config", "RECIPE", "--accelerator", "abacus"], "'abacus'.*cpu, gpu"),
        (["--config", "RECIPE", "--network.name", "resnet18x"], "no network 'resnet18x'"),
        (["--config", "RECIPE", "--network.options", '{"colour": 3}'], "resnet10t.*colour"),
        (["--config", "RECIPE", "--data.root", "nowhere"], "nowhere is not a folder"),
        (["--config", "RECIPE", "--data.train_size", "5"], "train_size is 5"),
        (["--config", "RECIPE", "--data.image_size", "big"], "data.image_size is 'big'; it must be a whole number"),
        (["--config", "RECIPE", "--data.sise", "5"], "unknown option --data.sise"),
        (["--config", "RECIPE", "--imports", '{x: "os:getcwd"}'], "os:getcwd was not imported: .*--allow-imports true"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    arguments: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(recipe) if a == "RECIPE" else a for a in arguments]
    with pytest.raises(ValueError, match=message) as caught:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_a_report_plans_a_study_without_its_imports() -> None:
    """A network of a study's own may be trained; a file doesn't say what is imported, so its record has no imports."""
    methods = [Method("basic"), Method("IC", ic=icnets.ICConfig(warm_start="gain"))]
    assert len(plan(Settings(methods, network=Network("lite0"), seeds=[0]))) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Method("x", start="middle"), "'middle'.*scratch or basic"),
        (lambda: Method("x", start="basic", network="seresnet18"), "can't start from the basic network"),
        (
            lambda: plan(Settings([Method("a"), Method("x", ic=icnets.ICConfig(warm_start="gain"))])),
            "starts from scratch",
        ),
        (lambda: Settings([Method("a", wld=True)]), "must be the basic network"),
        (lambda: Settings([Method("a"), Method("a")]), "2 methods are called 'a'"),
        (lambda: Settings([Method("a"), Method("b", control="c")]), "'c'; it must be another one of a, b"),
        (lambda: Settings([Method("a")], confidence=95.0), "95.0.*such as 0.95"),
        (lambda: Settings([Method("a")], networks=[Method("b")]), "a grid needs networks and parts"),
    ],
)
def test_methods_that_make_no_sense(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
