import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent
# The reference and the strategies; the scripts that measure.
sys.path[:0] = [str(TESTS), *(str(TESTS.parent / "benchmarks" / part) for part in (".", "coverage"))]

# torch's first calls are slow, and a shared machine is slow at times: time says nothing about correctness here.
settings.register_profile("icnets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("icnets")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported, which other packages do


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Our messages reach caplog: a logger remembers that it was off, even when the root's level is back."""
    logging.getLogger("icnets.messages")._cache.clear()


@pytest.fixture
def own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs go to a folder of the test's own; what a run leaves in the process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICNETS_DEBUG", raising=False)
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    yield
    torch.use_deterministic_algorithms(False)
    for name in ("PL_SEED_WORKERS", "PL_GLOBAL_SEED"):
        os.environ.pop(name, None)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
