import json
import shutil
from pathlib import Path

import pytest

from icnets.hub.card_evidence import read_evidence

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"


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


def test_what_is_no_evidence(comparison, tmp_path):
    with pytest.raises(ValueError, match=r"no method 'IC'; it has basic, basic, trained on, IC, warm start"):
        read_evidence(comparison, "IC")
    (tmp_path / "history.csv").write_text("epoch,val/top1\n1,0.5\n")
    with pytest.raises(ValueError, match=r"holds no run: there is no results\.json, which icnets compare writes"):
        read_evidence(tmp_path)
    whole = json.loads(RESULTS.read_text(encoding="utf-8"))
    for text in ("", "[]", '{"methods": []}', "\x00", json.dumps({**whole, "data": {"arguments": {}}})):
        (comparison / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"damaged|is no JSON object|Expecting value"):
            read_evidence(comparison)
    with pytest.raises(ValueError, match=r"there is no folder .*gone"):
        read_evidence(tmp_path / "gone")
