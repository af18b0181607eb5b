import json
from pathlib import Path

import pytest
from torch import nn

from icnets import save
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
    (tmp_path / "checkpoints").mkdir()
    save(nn.Conv2d(1, 1, 1), tmp_path / "checkpoints" / "best.safetensors", metadata={"class_names": "cat,dog"})
    return tmp_path


def test_a_comparison_is_told_with_seeds_intervals_and_controls():
    evidence = read_evidence(RESULTS, "IC, warm start")
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    row = next(r for r in record["methods"] if r["name"] == "IC, warm start")
    line = next(line for line in evidence.markdown.splitlines() if line.startswith("| **IC, warm start**"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"{row['error']['mean']:.2f} [{row['error']['low']:.2f}, {row['error']['high']:.2f}]"
    assert cells[3] == "basic, trained on"
    assert cells[4].startswith(f"−{-row['to_control']['mean']:.2f}")
    assert "95 % t interval over 5 seeds (0, 1, 2, 3, 4)" in evidence.markdown
    assert evidence.markdown.count("not distinguishable with 5 seeds") == 4
    assert evidence.measured is not None
    assert evidence.measured.accuracy == pytest.approx(1 - row["error"]["mean"] / 100)
    assert evidence.classes == list("0123456789")


def test_without_a_method_no_number_is_claimed():
    evidence = read_evidence(RESULTS)
    assert evidence.measured is None
    assert "Which row the weights are of isn't said." in evidence.markdown


def test_a_single_run_is_told_as_one(run):
    evidence = read_evidence(run)
    assert "| 2 (best) | 1.0000 | 1.1000 | 75.00% |" in evidence.markdown
    assert "ic\\_resnet18 on photos, 3 epochs, seed 4. One run: it has no interval over seeds" in evidence.markdown
    assert "someone" not in evidence.markdown
    assert evidence.measured is not None
    assert (evidence.measured.accuracy, evidence.measured.split) == (0.75, "validation")
    assert (evidence.notes, evidence.dataset) == ({"class_names": "cat,dog"}, None)
    assert "| 3 (last) | 0.5000 | 1.2000 | 70.00% |" in evidence.markdown


def test_a_data_set_of_the_hub_is_named(run):
    config = (run / "config.yaml").read_text().replace("hf: null", "hf: someone/flowers")
    (run / "config.yaml").write_text(config)
    assert read_evidence(run).dataset == read_evidence(run).data == "someone/flowers"


def test_what_is_no_evidence(run, tmp_path):
    with pytest.raises(ValueError, match=r"no method 'IC'; it has basic, basic, trained on, IC, warm start"):
        read_evidence(RESULTS, "IC")
    with pytest.raises(ValueError, match=r"is no comparison; leave method out"):
        read_evidence(run, "IC")
    (run / "history.csv").write_text("epoch,step\n")
    with pytest.raises(ValueError, match=r"is no whole run of icnets fit \(.*\); give the run's folder"):
        read_evidence(run)
    (run / "history.csv").unlink()
    with pytest.raises(ValueError, match=r"has neither results.json nor history.csv with config.yaml"):
        read_evidence(run)
    for text in ("", "[]", '{"methods": []}', '{"methods": [{"name": "a"}]}', "\x00"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"is no whole results.json of icnets compare"):
            read_evidence(tmp_path)
    with pytest.raises(ValueError, match=r"there is no evidence .*gone; give a folder"):
        read_evidence(tmp_path / "gone")
