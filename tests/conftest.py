import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # the reference and the strategies

# torch's first calls are slow, and a shared machine is slow at times: time says nothing about correctness here.
settings.register_profile("icnets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("icnets")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
