"""Trainings that are killed end as if they had not been; and the comparison sees what differs."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from icnets.training.run_checkpoints import AtomicCheckpointIO
from run_states import differences

ROOT = Path(__file__).parents[2]


def write_run(folder: Path, **changes: object) -> Path:
    """What a finished run leaves, in little."""
    from safetensors.torch import save_file

    state = {"network.weight": torch.arange(4.0)}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(4)}}}
    content = {
        "state_dict": state,
        "icnets": {},
        "optimizer_states": [optimizer],
        "seconds": random.random(),
        **changes,
    }
    AtomicCheckpointIO().save_checkpoint(content, folder / "checkpoints" / "step-000000003.ckpt")
    save_file({"weight": torch.arange(4.0)}, folder / "checkpoints" / "best.safetensors")
    (folder / "history.csv").write_text(f"epoch,seconds,val/top1\n1,{random.random()},0.5\n")
    return folder


def test_differences(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    assert differences(whole, write_run(tmp_path / "equal")) == []
    moved = [{"state": {0: {"momentum_buffer": torch.ones(4) + 1e-7}}}]
    found = differences(whole, write_run(tmp_path / "optimizer", optimizer_states=moved))
    assert found == ["checkpoint.optimizer_states.0.state.0.momentum_buffer"]
    left = write_run(tmp_path / "left")
    (left / ".history.csv.0badcafe.tmp").touch()
    assert differences(whole, left) == ["files"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_two_kills(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_matrix.py"), "--kills", "2", "--epochs", "2"]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, "--results", str(results), "--work", str(tmp_path / "work")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["aim"] for row in rows] == ["write", "validation"]
    assert rows[1]["phase"] == "validation"
    assert all(row["different"] == [] for row in rows)
    shutil.rmtree(tmp_path / "work")
