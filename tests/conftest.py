import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent
# The reference and the strategies; our studies; the scripts that measure.
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
sys.path[:0] = [str(TESTS.parent / "benchmarks" / part) for part in (".", "coverage", "evidence")]

# torch's first calls are slow, and a shared machine is slow at times: time says nothing about correctness here.
settings.register_profile("icnets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("icnets")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported, which other packages do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is no part of the package is tested by `make test-all` and not by `make test`."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in ("benchmarks", "studies", "test_guides.py", "test_notebooks.py"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we tell users reaches caplog, whatever tests before did to logging; says what that was."""
    found = {name: os.environ[name] for name in RANKS if os.environ.get(name, "0") != "0"}
    root, ours = logging.getLogger(), logging.getLogger("icnets.support.text")
    found |= {"root": root.level} if root.level > logging.WARNING else {}
    found |= {"disable": root.manager.disable} if root.manager.disable else {}
    for logger in (ours, logging.getLogger("icnets")):
        wrong = {
            "level": logger.level,
            "disabled": logger.disabled,
            "alone": not logger.propagate,
            "filters": logger.filters,
        }
        found |= {f"{logger.name}.{key}": value for key, value in wrong.items() if value}
        logger.disabled, logger.propagate = False, True
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
    if caplog.handler.level or caplog.handler.filters or caplog.handler not in root.handlers:
        found |= {"caplog": (caplog.handler.level, caplog.handler.filters, root.handlers)}
        caplog.handler.setLevel(logging.NOTSET)
    if found:
        print(f"logging was changed before {os.environ.get('PYTEST_CURRENT_TEST')}: {found}", file=sys.__stderr__)
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    logging.disable(logging.NOTSET)
    root.setLevel(logging.WARNING)


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
