import json
import shutil
from pathlib import Path

import pytest

from icnets.hub.card_evidence import read_evidence

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as icnets fit leaves it."""
    config = "seed_everything: 4\nmodel: {model: ic_resnet18}\ndata: {root: /home/someone/photos, hf: null}\n"
    (tmp_path / "config.yaml").write_text(config)
    rows = ["epoch,step,seconds,train/loss,val/loss,val/top1", "1,5,1.0,2.0,1.9,0.5", "2,10,2.0,1.0,1.1,0.75"]
    (tmp_path / "history.csv").write_text("\n".join([*rows, "3,15,3.0,0.5,1.2,0.7", ""]))
    return tmp_path


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """The folder of a comparison, as far as a card reads it."""
    folder = tmp_path / "comparison"
    folder.mkdir()
    shutil.copy(RESULTS, folder / "results.json")
    return folder


def test_a_comparison_is_told_with_seeds_intervals_and_controls(comparison):
    evidence = read_evidence(comparison, "IC, warm start")
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    row = next(r for r in record["methods"] if r["name"] == "IC, warm start")
    line = next(line for line in evidence.markdown.splitlines() if line.startswith("| IC, warm start"))
    cells = [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]
    assert cells[1] == f"{row['error']['mean']:.2f} [{row['error']['low']:.2f}, {row['error']['high']:.2f}]"
    assert cells[3].startswith(f"−{-row['to_control']['mean']:.2f}")
    assert "basic, trained on for IC, warm start" in evidence.markdown
    assert "95 % t interval over 5 seeds" in evidence.markdown
    assert "The weights here are one seed's of the row IC, warm start." in evidence.markdown
    assert evidence.markdown.count("not distinguishable with 5 seeds") == 4
    assert evidence.accuracy == pytest.approx(1 - row["error"]["mean"] / 100)
    assert evidence.classes == list("0123456789")
    assert read_evidence(comparison / "results.json", "IC, warm start") == evidence


def test_without_a_method_no_number_is_claimed(comparison):
    evidence = read_evidence(comparison)
    assert evidence.accuracy is None
    assert "Which row the weights are of isn't said." in evidence.markdown


def test_a_single_run_is_told_as_one(run):
    evidence = read_evidence(run)
    assert "`icnets fit` on photos: val/top1 75.00% after epoch 2 of 3, the best" in evidence.markdown
    assert "One run, without an interval over seeds and without a control." in evidence.markdown
    assert "someone" not in evidence.markdown
    assert (evidence.accuracy, evidence.split) == (0.75, "validation")
    assert evidence.dataset is None


def test_a_data_set_of_the_hub_is_named(run):
    config = (run / "config.yaml").read_text().replace("hf: null", "hf: someone/flowers")
    (run / "config.yaml").write_text(config)
    assert read_evidence(run).dataset == read_evidence(run).data == "someone/flowers"


def test_what_is_no_evidence(run, comparison, tmp_path):
    with pytest.raises(ValueError, match=r"no method 'IC'; it has basic, basic, trained on, IC, warm start"):
        read_evidence(comparison, "IC")
    with pytest.raises(ValueError, match=r"is no comparison; leave method out"):
        read_evidence(run, "IC")
    (run / "history.csv").write_text("epoch,step\n1,5\n")
    with pytest.raises(ValueError, match=r"has no epoch with val/top1; give the folder of a run that validated"):
        read_evidence(run)
    for config in ("", "data: [", "data: 3"):
        (run / "history.csv").write_text("epoch,val/top1\n1,0.5\n")
        (run / "config.yaml").write_text(config)
        with pytest.raises(ValueError, match=r"holds a damaged run \(.*\); give the folder of a whole one"):
            read_evidence(run)
    (run / "history.csv").unlink()
    with pytest.raises(ValueError, match=r"holds no run: neither results\.json, .* nor history\.csv"):
        read_evidence(run)
    whole = json.loads(RESULTS.read_text(encoding="utf-8"))
    for text in ("", "[]", '{"methods": []}', "\x00", json.dumps({**whole, "data": {"arguments": {}}})):
        (comparison / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"damaged|is no JSON object|Expecting value"):
            read_evidence(comparison)
    with pytest.raises(ValueError, match=r"there is no folder .*gone"):
        read_evidence(tmp_path / "gone")
