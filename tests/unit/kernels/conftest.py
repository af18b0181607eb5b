import pytest

from icnets.unit.kernels import native


@pytest.fixture(scope="module", params=[pytest.param("torch", marks=pytest.mark.slow), "native"], autouse=True)
def kernels(request):
    """Every test of this folder runs twice: by torch's own operators (slow), and by the compiled ones.

    On a machine without a compiler, all others are by torch's own.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "torch":
            monkeypatch.setattr(native, "_operators", {})
        else:
            try:
                native.build()
            except ValueError as error:
                pytest.skip(str(error))
        yield request.param
