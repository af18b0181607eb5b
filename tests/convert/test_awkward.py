"""Modules that are hard to convert: each is converted, or left with a reason, and nothing goes silently wrong."""

import copy
from pathlib import Path

import pytest

from architectures import build, cases, prepare
from icnets import ICConfig, convert_, revert_
from network_checks import run_checks

CASES = {case.name.rpartition("/")[2]: case for case in cases(["folder"], Path(__file__).parent / "awkward")}


def test_there_are_forty():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_outcome(name):
    model = build(CASES[name])
    expected = type(model)
    report = convert_(model, ICConfig(layers="all"))
    assert report.converted == getattr(expected, "converted", [])
    skipped = getattr(expected, "skipped", {})
    assert report.skipped.keys() == skipped.keys()
    for layer, reason in skipped.items():
        assert report.skipped[layer].endswith(reason)
    found = run_checks(prepare(CASES[name]))
    assert found["converted"] == len(report.converted)
    failing = getattr(expected, "failing", {})
    for check, outcome in found["checks"].items():
        assert outcome.startswith(failing.get(check, "ok")), check


@pytest.mark.parametrize("name", [n for n in CASES if "structures.py" in n])
def test_merging_is_refused_until_reverted(name):
    model = build(CASES[name])
    refused = getattr(type(model), "refused", [])
    convert_(model, ICConfig(layers="all"))
    for method in refused:
        with pytest.raises(TypeError, match=r"would lose their collisions; call icnets\.fuse_\(model\)"):
            getattr(copy.deepcopy(model), method)()
    revert_(model)
    for method in refused:
        getattr(model, method)()
