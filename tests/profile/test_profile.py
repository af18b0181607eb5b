import pytest

from icnets.cli.profile import main
from icnets.profile.measure import Profile, profile_table
from icnets.unit.kernels import native

TINY = ["--image-size", "32", "--batch-size", "2", "--rounds", "2", "--num-classes", "5"]


def test_rows_and_ratios(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Profile] = []
    table = "icnets.cli.profile.profile_table"
    monkeypatch.setattr(table, lambda profiles, sample: seen.extend(profiles) or profile_table(profiles, sample))
    assert main(["resnet18", *TINY]) == 0
    printed = capsys.readouterr().out
    basic, ic, kxk = seen
    assert [p.name for p in (basic, kxk)] == ["resnet18", "IC resnet18, k×k only"]
    assert all(p.name in printed for p in seen)
    assert (basic.inference.ratio, basic.training.ratio, basic.memory_ratio) == (1.0, 1.0, 1.0)
    assert 0 < kxk.macs.ic < ic.macs.ic
    assert ic.macs.total - ic.macs.ic == basic.macs.total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "note"), [(True, "with the C++ kernels"), (False, "the C++ kernels of `icnets build`")]
)
def test_says_what_ic_units_compute_with(there: bool, note: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(native, "loaded", lambda: there)
    assert main(["resnet10t", *TINY]) == 0
    assert note in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: NAME"),
        (["resnet-18"], "no network 'resnet-18'"),
        (["resnet18", "--batch-size", "zero"], "batch-size.*zero"),
        (["resnet18", "--rounds", "0"], "--rounds is 0"),
        (["resnet18", "--device", "abacus"], "'abacus'.*cpu or cuda"),
        (["vit_tiny_patch16_224", "--image-size", "65"], "65.*try another --image-size"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
