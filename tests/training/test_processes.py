"""Two processes train as one does: the same losses, and every image once an epoch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagenet_like import Settings, write

SCRIPT = Path(__file__).parent / "processes.py"
SOURCES = Path(__file__).parents[2] / "src"
IMAGES, VAL, BATCH = 48, 10, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write(out, Settings(classes=4, train=IMAGES // 4, val=3, scale=0.15))
    return out


def train(root: Path, world: int) -> list[dict[str, Any]]:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), "--rdzv-backend", "c10d"]
    launcher = [*torchrun, "--rdzv-endpoint", "localhost:0"] if world > 1 else []
    paths = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(root), str(BATCH), str(world)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((root / f"result-{world}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path) -> None:
    (alone,), together = train(data, 1), train(data, 2)
    assert len(alone["losses"]) == 2 * IMAGES // BATCH
    for result in together:
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        assert result["validation"] == pytest.approx(alone["validation"], rel=1e-6)
    for epoch in range(2):
        expected = sorted(name for e, name in alone["read"] if e == epoch)
        found = sorted(name for result in together for e, name in result["read"] if e == epoch)
        assert found == expected
        assert len(set(found)) == len(found) == IMAGES
