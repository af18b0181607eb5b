import pytest
import torch

from icnets.unit.kernels import gpu, native


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """The Triton kernels serve: on the GPU if there is one, and else on the CPU in Triton's interpreter."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not torch.cuda.is_available():
            monkeypatch.setattr(gpu, "_DEVICE", "cpu")
            monkeypatch.setattr(native, "_operators", {})
        yield


@pytest.fixture(scope="module")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Memory that a kernel forgets to write is NaN, not what the last run left there; a failure is its test's own."""
    monkeypatch.setattr(gpu, "_available", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
