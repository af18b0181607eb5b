"""docs/coverage.md from the lines of ``python benchmarks/coverage``: counts for each family, and every reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from icnets.support.text import few

__all__ = ["markdown", "summary"]

Line = dict[str, Any]

_INTRODUCTION = """\
# Coverage: which architectures convert

Written by `python benchmarks/coverage --docs docs/coverage.md` from its lines; don't edit it by hand.

Each network is made with random weights and fed the smallest input that it takes. It passes if

- `convert_` turns its convolutions into IC units (what is skipped stands below, with the reason);
- the warm start "gain" keeps its outputs, and awake collisions change them;
- in a training step every gradient is finite, and every unit whose weight has a gradient has one too;
- `save` and `load` rebuild it, bit for bit; `revert_` gives the basic network back, bit for bit;
- `fuse_` leaves no unit, and keeps its outputs to 1e-3 of the largest in single precision, or, where a network
  amplifies rounding beyond that, to 1e-9 in double precision, if need be with its batch norms' statistics as of the
  input, and the collisions a tenth or a hundredth as large;
- every twentieth: `torch.compile`, and an ONNX graph in ONNX Runtime, give the same outputs.

Not a goal: the recurrent structures of the IC neuron paper (arXiv 2011.11271). There is no `ICLSTMCell` and no
`ICGRUCell`; `ICLinear` is the neuron, for whoever builds one.
"""


def _by_id(found: Sequence[Line], kind: str) -> dict[str, Line]:
    return {line["id"]: line for line in found if line["kind"] == kind}


def _failure(line: Line) -> str | None:
    return next((f"{check}: {why}" for check, why in line["checks"].items() if why != "ok"), None)


def _outcome(line: Line) -> str:
    """ "pass", "fails", or what ``fuse_`` left: "not fused", "fused 3 of 5"; "not counted" where the line is old."""
    if _failure(line) is not None:
        return "fails"
    fused, units = line.get("fused"), line.get("converted", 0)
    if fused is None:
        return "not counted"
    return "pass" if fused == units else "not fused" if fused == 0 else f"fused {fused} of {units}"


def _share(passed: int, checked: int) -> str:
    return f"{passed} of {checked} ({passed / checked:.1%})" if checked else "none"


def summary(found: Sequence[Line]) -> str:
    """How many passed, for each source, on a line each."""
    checked = _by_id(found, "checks")
    rows = []
    for source in dict.fromkeys(name.partition("/")[0] for name in checked):
        own = [line for name, line in checked.items() if name.startswith(f"{source}/")]
        outcomes = [_outcome(line) for line in own]
        uncounted = outcomes.count("not counted")
        row = f"{source}: {_share(outcomes.count('pass') + uncounted, len(own))} pass every check"
        rows.append(row + (f"; whether every unit was fused was not counted for {uncounted}" if uncounted else ""))
    return "\n".join(rows) or "nothing was checked"


def markdown(found: Sequence[Line]) -> str:
    """The whole page."""
    header: Line = next((line for line in found if line["kind"] == "coverage"), {"versions": {}})
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items() if version)
    parts = [_INTRODUCTION, f"With {versions}:", "", *[f"- {row}" for row in summary(found).splitlines()]]
    parts += ["", "## Failures", "", *_failures(found), "", "## Skipped layers", "", *_skipped(found)]
    parts += ["", "## What is left by `fuse_`", "", *_left(found)]
    parts += ["", "## Basic networks that can't be made", "", *_unmade(found)]
    parts += ["", "## Families", "", *_families(found)]
    return "\n".join(parts) + "\n"


def _failures(found: Sequence[Line]) -> list[str]:
    rows = [(name, _failure(line)) for name, line in sorted(_by_id(found, "checks").items())]
    failed = [f"| {name} | {_cell(why)} |" for name, why in rows if why is not None]
    return ["| network | check and reason |", "|---|---|", *failed] if failed else ["None."]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _skipped(found: Sequence[Line]) -> list[str]:
    return _reasons(found, "skipped", "layers") or ["None."]


def _left(found: Sequence[Line]) -> list[str]:
    checked = sorted(_by_id(found, "checks").items())
    outcomes = {name: _outcome(line) for name, line in checked}
    rows = [f"- {name}: {outcome}" for name, outcome in outcomes.items() if "fused" in outcome]
    uncounted = sum(outcome == "not counted" for outcome in outcomes.values())
    rows += [f"- not counted: {uncounted} of {len(checked)}"] if uncounted else []
    table = _reasons(found, "left", "units and batch norms")
    return [*rows, *([""] if rows and table else []), *table] or ["None."]


def _reasons(found: Sequence[Line], key: str, what: str) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, line in sorted(_by_id(found, "checks").items()):
        for reason, count in line.get(key, {}).items():
            reasons[reason].append(f"{name} ({count})")
    rows = [f"| {_cell(reason)} | {few(names, 5)} |" for reason, names in sorted(reasons.items())]
    return [f"| reason | networks ({what}) |", "|---|---|", *rows] if rows else []


def _unmade(found: Sequence[Line]) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, line in sorted(_by_id(found, "size").items()):
        if "reason" in line:
            own = name.rpartition("/")[2]
            reasons[line["reason"].replace(own, "NAME")].append(name)
    return [f"- {reason}: {few(names)}" for reason, names in reasons.items()] or ["None."]


def _families(found: Sequence[Line]) -> list[str]:
    sizes, checked = _by_id(found, "size"), _by_id(found, "checks")
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    units: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for name in sorted(sizes.keys() | checked.keys()):
        line = checked.get(name)
        family = (name.partition("/")[0], (line or sizes[name])["family"])
        with_convolution = bool(sizes.get(name, {"convolutions": 1})["convolutions"])
        passed = line is not None and _outcome(line) in ("pass", "not counted")
        if line is not None and "fused" in line:
            units[family] = [a + b for a, b in zip(units[family], (line["fused"], line["converted"]), strict=True)]
        for i, value in enumerate((1, with_convolution, line is not None, passed)):
            counts[family][i] += value
    fused = {
        family: f"{units[family][0]} of {units[family][1]}" if family in units else "not counted" for family in counts
    }
    rows = [f"| {' | '.join(f)} | {' | '.join(map(str, c))} | {fused[f]} |" for f, c in sorted(counts.items())]
    head = "| source | family | architectures | with a convolution | checked | pass | units fused |"
    return [head, "|---|---|---:|---:|---:|---:|---:|", *rows]
