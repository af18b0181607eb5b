"""The recipes of the ImageNet experiment are what their table says, and run."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from timm.models import get_pretrained_cfg

from icnets.cli import main
from icnets.open_network import starting_config

FOLDER = Path(__file__).parents[2] / "recipes" / "imagenet"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_table_says(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(FILES) == 4 * 4 * 2
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    (tmp_path / "resnet50-ic-plain.yaml").write_text("changed")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "resnet50-ic-plain.yaml is not what generate.py writes; run it again\n"


def test_recipes_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    for path in FOLDER.glob("resnet50-*.yaml"):  # the others in the slow test
        assert main(["fit", "--config", str(path), "--print_config"]) == 0, path.name
        printed = yaml.safe_load(capsys.readouterr().out)
        written = yaml.safe_load(path.read_text())
        for section in ("trainer", "data"):
            for name, value in written[section].items():
                assert printed[section][name] == value, (path.name, name)
        assert printed["model"]["lr"] == written["model"]["lr"]


def test_methods_differ_in_what_they_are_about(generate: ModuleType) -> None:
    for network in generate.NETWORKS:
        for recipe in generate.RECIPES:
            found = {method: generate.options(network, method, recipe)["model"] for method in generate.METHODS}
            assert found["ic"] == {**found["basic"], "model": f"ic_{network}"}
            assert found["ic_wld"].keys() - found["ic"].keys() == {"teacher", "distillation"}
            assert found["ic_warm"]["pretrained"] is True
            warm = starting_config(found["ic_warm"]["model"], trained=True)
            assert warm is not None
            assert warm.warm_start == "gain"
            cfg = get_pretrained_cfg(found["ic_warm"]["model"].removeprefix("ic_"))
            assert cfg is not None
            assert cfg.has_weights


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_plan(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.num_nodes", "4"]
    assert main(["fit", "--config", str(path), "--data.image_size", "64", *trainer, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "devices    8 × gpu on 4 nodes\n" in out
    assert "missing    data: imagenet is not a folder" in out
