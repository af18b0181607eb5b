"""DDP with every precision that CPUs have, in two processes as torchrun starts them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from icnets import ICConfig, convert_, create_model, load

SCRIPT = Path(__file__).parent / "engines.py"
ROOT = Path(__file__).parents[2]


def launch(precisions: str, folder: Path) -> dict[str, Any]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(SCRIPT)]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, precisions, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return {line["precision"]: line for line in lines}


def check(found: dict[str, Any], precision: str, folder: Path) -> None:
    whole, rest = found[precision]["whole"], found[precision]["rest"]
    assert (len(whole), len(rest)) == (20, 10)
    assert all(map(math.isfinite, whole + rest))
    assert sum(whole[-5:]) < sum(whole[:5]) - 0.5  # it trains
    assert rest == whole[10:]
    weights = torch.load(folder / f"{precision}-whole" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in load(folder / f"{precision}-whole" / "best.safetensors").state_dict().items():
        assert torch.equal(value, weights[f"network.{name}"]), name


@pytest.mark.slow
def test_all_engines(tmp_path: Path) -> None:
    precisions = ["32-true", "bf16-mixed"]
    found = launch(",".join(precisions), tmp_path)
    for precision in precisions:
        check(found, precision, tmp_path)
    # A checkpoint says nothing of the engine that wrote it.
    network = convert_network()
    network.load_state_dict(load(tmp_path / "32-true-whole" / "best.safetensors").state_dict())


def convert_network() -> torch.nn.Module:
    network = create_model("resnet10t", ic=None, num_classes=10, in_chans=1, channels=[8, 8, 16, 16], stem_width=8)
    convert_(network, ICConfig())
    return network
