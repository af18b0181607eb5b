"""Damaged files, each of which the program must notice, name or rightly ignore; and how its answers are judged."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fuzz_inputs import FINE, Outcome, classify
from fuzz_mutations import BYTES, STRUCTURE

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_inputs.py"
CLEAN = Outcome(0, "", "", "abc")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_damaged_file_is_a_failure(tmp_path: Path) -> None:
    count = 20
    # In a process without threads, which it can fork.
    command = [
        sys.executable,
        str(SCRIPT),
        "--count",
        str(count),
        "--seed",
        "7",
        "--out",
        str(tmp_path / "found.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(findings) == count
    assert {finding["outcome"] for finding in findings} <= set(FINE)
    assert len({finding["kind"] for finding in findings}) == 4


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(2, "", "icnets: error: can't read a.png: it is cut\n", ""), "error"),
        (Outcome(2, "", "icnets: error: can't read an image\n", ""), "doesn't say where"),
        (Outcome(2, "", "icnets: error: a.png has a problem:\n", ""), "doesn't say where"),
        (Outcome(2, "", "x.py:1: UserWarning\nicnets: error: can't read a.png\n", ""), "several lines"),
        (Outcome(0, "", "can't read the image a.png: it is cut; it is skipped\n", "xyz"), "named"),
        (Outcome(0, "", "can't read the image b.png: it is cut; it is skipped\n", "xyz"), "differs"),
        (Outcome(1, "error: truncated (1)\n  ant/a.png: cut\n", "", "xyz"), "named"),
        (Outcome(0, "", "", "abc"), "harmless"),
        (Outcome(0, "", "", "xyz"), "differs"),
        (Outcome(70, "", "Traceback (most recent call last):\nKeyError: 1\n", ""), "traceback"),
        (Outcome(None, "", "", ""), "hang"),
        (Outcome(-11, "", "", ""), "signal 11"),
    ],
)
def test_classify(outcome: Outcome, expected: str) -> None:
    assert classify(outcome, CLEAN, "a.png", False, [])[0] == expected


def test_a_valid_file_may_differ_and_nothing_may_be_left() -> None:
    assert classify(Outcome(0, "", "", "xyz"), CLEAN, "a.png", True, [])[0] == "valid"
    assert classify(Outcome(2, "", "icnets: error: a.png\n", ""), CLEAN, "a.png", False, ["b.tmp"])[0] == "half-written"


@pytest.mark.parametrize("name", [*BYTES, *STRUCTURE])
def test_damage_follows_from_the_seed_and_mostly_does_some(name: str) -> None:
    content = yaml.safe_dump({"a": {"b": [1, 2, 3], "c": "text"}, "d": 4.0}).encode()
    damage = (BYTES | STRUCTURE)[name]
    changed = [damage(np.random.default_rng(seed), content)[0] for seed in range(20)]
    assert changed == [damage(np.random.default_rng(seed), content)[0] for seed in range(20)]
    assert sum(after != content for after in changed) > 10
