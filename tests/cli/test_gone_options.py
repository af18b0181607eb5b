"""Options of earlier versions, in configurations and on the command line."""

from pathlib import Path

import pytest
import yaml

from icnets.cli import main

OLD = "data:\n  train_size: 60\n  predict_root: null\n  test_crops: 1\n  test_root: null\n  real_labels: null\n"
OLD += "  train_shards: null\n  val_shards: null\n  cache: null\n"
NETWORK = ["--model.model", "resnet10t"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_configuration_with_their_defaults_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text(OLD)
    assert main(["fit", "--config", "old.yaml", *NETWORK, "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["train_size"] == 60
    assert (
        not {"predict_root", "test_crops", "test_root", "real_labels", "train_shards", "val_shards", "cache"}
        & data.keys()
    )


@pytest.mark.parametrize("command", [["fit", *NETWORK], ["compare"]])
def test_another_value_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text(OLD.replace("crops: 1", "crops: 10"))
    assert main([*command, "--config", "old.yaml"]) == 2
    err = capsys.readouterr().err
    assert "data.test_crops is 10, but there is no option data.test_crops any more: the centre crop is tested" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["fit", *NETWORK], ["test"]])
@pytest.mark.parametrize("given", [["--data.predict_root", "new"], ["--data.predict_root=new"]])
def test_on_the_command_line_too(command: list[str], given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, *given]) == 2
    says = "there is no option data.predict_root any more: icnets predict MODEL PATHS reads folders"
    assert capsys.readouterr().err == f"icnets: error: {says}\n"
