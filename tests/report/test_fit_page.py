"""The page of runs of fit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import icnets
from icnets.cli import main
from icnets.report.fit_page import _inspect, read_fits

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs "one", which was tested, and "two" with another network; not to be written to."""
    runs = tmp_path_factory.mktemp("fits") / "runs"
    fit = ["fit", "--config", str(CONF / "digits_basic.yaml"), "--runs", str(runs), "--trainer.max_epochs"]
    assert main([*fit, "3", "--name", "one"]) == 0
    assert main([*fit, "2", "--name", "two", "--model.ic.layers", "all", "--data.mixup", "0"]) == 0
    assert main(["test", "--name", "one", "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_two_runs_on_one_page(runs: Path) -> None:
    assert main(["report", "runs/one", "runs/two", "--images", "4"]) == 0
    page = Path("runs/one/report.html").read_text(encoding="utf-8")
    test = json.loads(Path("runs/one/test.json").read_text())
    assert f"{100 * test['top1']:.2f}" in page
    assert "two isn&#39;t tested: icnets test --name two --runs runs" in page
    assert page.count('role="img"') == 5  # error by epoch and by second, loss, two confusions
    assert re.search(
        r"Of 797 test images, \d+ only <strong>two</strong> gets right,\s+\d+ only <strong>one</strong>", page
    )
    assert page.count("Grad-CAM of one") == page.count("Grad-CAM of two") == 4
    assert not re.search(r"<td[^>]*data-label=\"(?:MACs|ms)[^>]*></td>", page)  # both were measured


def test_where_two_differ_is_what_their_networks_say(runs: Path) -> None:
    one, two = read_fits([Path("runs/one"), Path("runs/two")])
    look = _inspect(one, two)
    for run, answers in ((one, look.control), (two, look.chosen)):
        network = icnets.load(run.folder / "checkpoints" / "best.safetensors").eval()
        with torch.no_grad():
            logits = torch.cat([network(x) for x, _ in run.data.test_dataloader()])
        torch.testing.assert_close(answers.logits, logits, rtol=1e-4, atol=1e-4)
    right = int((look.control.classes == look.target).sum()) / 797
    assert 100 * right == pytest.approx((one.test or {})["top1"], abs=1e-3)


def test_one_run_that_was_not_tested(runs: Path) -> None:
    assert main(["report", "runs/two"]) == 0
    page = Path("runs/two/report.html").read_text(encoding="utf-8")
    assert page.count('role="img"') == 4
    assert "Where the two disagree" not in page
    assert "Not shown" not in page


def test_other_images_and_weights_that_are_gone(runs: Path) -> None:
    config = Path("runs/two/config.yaml")
    config.write_text(config.read_text().replace("image_size: 16", "image_size: 24"))
    shutil.rmtree("runs/two/checkpoints")
    assert main(["report", "runs/one", "runs/two"]) == 0
    page = Path("runs/one/report.html").read_text(encoding="utf-8")
    assert "Not shown: one and two have other test images, or see them in another way." in page
    assert "The network of two can&#39;t be rebuilt: " in page
    assert "While training" in page


def test_only_a_report_is_replaced_without_being_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Path("runs/two/report.html")
    report.write_text("my notes")
    assert main(["report", "runs/two"]) == 2
    assert "runs/two/report.html exists already; give another --out, or --force" in capsys.readouterr().err
    assert report.read_text() == "my notes"
    assert main(["report", "runs/two", "--force"]) == 0
    first = report.read_text()
    assert main(["report", "runs/two"]) == 0
    assert report.read_text().count("<h2>") == first.count("<h2>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/one", "nowhere"], "nowhere is no run of icnets fit; give runs of fit, or one comparison"),
        (["runs/damaged"], "runs/damaged is no run of icnets fit, or damaged: "),
        (["runs/empty"], "runs/empty is no run of icnets fit, or damaged: no epoch, or no options of data and model"),
    ],
)
def test_mistakes(runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("damaged", "empty"):
        shutil.copytree("runs/two", f"runs/{name}")
    Path("runs/damaged/config.yaml").unlink()
    Path("runs/empty/history.csv").write_text("epoch\n")
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(runs.glob("*/report.html"))
