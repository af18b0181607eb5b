import json
import textwrap
from pathlib import Path
from runpy import run_path

import pytest
import torch

import coverage_runs
from architectures import Case, Prepared, cases, prepare
from coverage_page import markdown, summary
from network_checks import CHECKS, SAMPLED, Subject, run_checks

main = run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "coverage"))["main"]

MODULES = """
import torch
from torch import nn


class Good(nn.Sequential):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Broken(nn.Module):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        raise ValueError("no images today")


class Hidden(nn.Module):
    shape = (2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.get_submodule("conv").weight)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "modules").mkdir()
    name = f"mine_{tmp_path.name}.py"  # a module's name is remembered for the whole process
    (tmp_path / "modules" / name).write_text(textwrap.dedent(MODULES))
    return tmp_path / "modules"


def run(folder, *more):
    path = folder.parent / "lines.jsonl"
    argv = ["--sources", "folder", "--folder", str(folder), "--lines", str(path), "--all", "--workers", "1"]
    assert main([*argv, *more]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow  # two processes import torch
def test_the_command_checks_resumes_and_writes_the_page(folder, capsys):
    page = folder.parent / "coverage.md"
    found = run(folder, "--only", "*Good", "--docs", str(page))
    assert [line["kind"] for line in found] == ["coverage", "size", "checks"]
    assert found[2]["checks"] == dict.fromkeys(["convert", *CHECKS, *SAMPLED], "ok")
    found = run(folder, "--docs", str(page))
    assert sum(line["kind"] == "checks" for line in found) == 3
    outcomes = {line["id"].rpartition(":")[2]: line["checks"] for line in found if line["kind"] == "checks"}
    assert "no images today" in outcomes["Broken"]["prepare"]
    assert outcomes["Hidden"]["backward"] == "conv gives its weight a gradient, but not collision"
    text = page.read_text()
    assert "folder: 1 of 3 (33.3%) pass every check" in text
    assert "no images today" in text
    capsys.readouterr()
    assert run(folder) == found  # nothing is left to do
    assert "checked" not in capsys.readouterr().out
    run(folder, "--retry")
    assert capsys.readouterr().out.count("checked") == 2


def line(name, family="resnet", **checks):
    return {"kind": "checks", "id": name, "family": family, "skipped": {}, "checks": checks, "seconds": 1}


def size(name, parameters, convolutions=3, family="resnet"):
    return {"kind": "size", "id": name, "family": family, "parameters": parameters, "convolutions": convolutions}


def test_the_page_counts_by_family_and_gives_each_reason():
    found = [
        {"kind": "coverage", "versions": {"torch": "2"}},
        size("timm/a", 5),
        size("timm/b", 6),
        size("timm/v", 7, 0, "vit"),
        {**size("smp/pan/vgg11", 0, 0, "pan"), "reason": "ValueError: vgg11 can't be dilated"},
        {**size("smp/pan/vgg13", 0, 0, "pan"), "reason": "ValueError: vgg13 can't be dilated"},
        line("timm/a", gain="ok", fuse="ok"),
        {**line("timm/b", gain="the warm start | differs", fuse="ok"), "skipped": {"complex weight": 4}},
    ]
    text = markdown(found)
    assert "| timm/b | gain: the warm start \\| differs |" in text
    assert "| complex weight | timm/b (4) |" in text
    assert "- ValueError: NAME can't be dilated: smp/pan/vgg11, smp/pan/vgg13\n" in text
    assert "| timm | resnet | 2 | 2 | 2 | 1 | not counted |" in text
    assert "| timm | vit | 1 | 0 | 0 | 0 | not counted |" in text
    assert "- not counted: 1 of 2" in text
    expected = "timm: 1 of 2 (50.0%) pass every check; whether every unit was fused was not counted for 1"
    assert summary(found) == expected
    assert summary([]) == "nothing was checked"


def test_a_network_that_is_not_fused_does_not_pass():
    counts = {"all": (5, 5, {}), "some": (5, 3, {"transposed": 2, "a | b": 1}), "none": (5, 0, {"transposed": 5})}
    found = [
        {**line(f"timm/{name}", fuse="ok"), "converted": units, "fused": fused, "folded": 0, "left": left}
        for name, (units, fused, left) in counts.items()
    ]
    text = markdown([{"kind": "coverage", "versions": {}}, *found])
    assert "- timm/none: not fused\n- timm/some: fused 3 of 5\n" in text
    assert "| transposed | timm/none (5), timm/some (2) |" in text
    assert "| timm | resnet | 3 | 3 | 3 | 1 | 8 of 15 |" in text
    assert "not counted" not in text
    assert summary(found) == "timm: 1 of 3 (33.3%) pass every check"


def test_units_that_stay_are_counted():
    class Dynamic(torch.nn.Conv2d):
        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight * x.mean(), self.bias)

    layers = Dynamic(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 4, 2), torch.nn.BatchNorm2d(4)
    x = torch.rand(2, 3, 8, 8)
    found = run_checks(Prepared(torch.nn.Sequential(*layers).eval(), (x,), (x,), [3, 8, 8]))
    reason = "Dynamic convolves with another weight or bias at each call"
    assert found["left"] == {reason: 1, f"the layer before it can't take it: {reason}": 1}
    assert (found["converted"], found["fused"], found["folded"]) == (2, 1, 1)


def test_representatives_are_the_smallest_and_everything_is_bounded():
    found = [
        Case("timm", family, name) for family, name in (("r", "a"), ("r", "b"), ("r", "c"), ("v", "d"), ("x", "e"))
    ]
    values = {"a": (9, 1), "b": (3, 1), "c": (10**9, 1), "d": (4, 0), "e": (10**9, 2)}
    sizes = {f"timm/{n}": size(f"timm/{n}", *v) for n, v in values.items()}
    assert [c.name for c in coverage_runs.chosen(found, sizes, False, 1e8)] == ["b", "e"]
    assert [c.name for c in coverage_runs.chosen(found, sizes, True, 1e8)] == ["b", "e", "a"]


def test_every_source_that_is_installed_has_cases():
    assert len(cases(["timm"])) > 1000
    tasks = {case.task for case in cases(["torchvision"])}
    assert tasks == {"images", "detection", "segmentation", "video", "optical_flow"}
    assert [c.id for c in cases(["timm"], only="timm/resnet5?")] == ["timm/resnet50", "timm/resnet51q"][:1]
    assert {c.name.partition("/tu-")[0] for c in cases(["smp"], only="*/tu-*")} == {"dpt"}  # takes no other


def test_a_small_network_passes():
    case = next(iter(cases(["timm"], only="timm/test_resnet")))
    found = run_checks(prepare(case))
    assert set(found["checks"].values()) == {"ok"}
    assert found["skipped"] == {}
    assert found["converted"] == found["fused"] == 15
    assert found["folded"] == 15
    assert found["left"] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "timm/efficientnetv2_rw_t",  # amplifies rounding
        "torchvision/ssdlite320_mobilenet_v3_large",  # its scores tie, unless its batch norms are settled
        "torchvision/lraspp*",
        "timm/test_nfnet",
    ],
)
def test_every_check_passes(pattern):
    found = run_checks(prepare(cases([pattern.partition("/")[0]], only=pattern)[0]))
    assert set(found["checks"].values()) == {"ok"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--folder", "nowhere"], "there is no folder nowhere; check --folder"),
        (["--sample", "0"], "--sample is 0; it must be 1 or more"),
        (["--sources", "keras"], "invalid choice: 'keras'"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err


def test_networks_that_others_register_with_timm_are_not_timms():
    import icnets.timm_models

    names = {case.name for case in cases(["timm"])}
    assert "resnet50" in names
    assert not names & set(icnets.timm_models.NETWORKS)


class Coarse(torch.nn.Module):
    """Amplifies rounding, in single precision only beyond what fuse_ allows."""

    def __init__(self, by, wrong=False):
        super().__init__()
        self.conv, self.norm, self.by, self.wrong = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), by, wrong

    def forward(self, x):
        x = self.norm(self.conv(x))
        return torch.sin(self.by * x) if not self.wrong or isinstance(self.norm, torch.nn.BatchNorm2d) else x


@pytest.mark.parametrize("by", [1e3, 2e4])
@pytest.mark.parametrize("wrong", [False, True])
def test_rounding_that_a_network_amplifies_is_told_from_an_error(by, wrong):
    x = torch.rand(2, 3, 8, 8)
    found = run_checks(Prepared(Coarse(by, wrong).eval(), (x,), (x,), [3, 8, 8]))["checks"]["fuse"]
    assert (found == "ok") is not wrong


def test_nothing_is_said_of_a_network_that_gives_rounding():
    x = torch.rand(2, 3, 8, 8)
    found = run_checks(Prepared(Coarse(1e15).eval(), (x,), (x,), [3, 8, 8]))["checks"]["fuse"]
    assert found.startswith("nothing can be said: random changes of the weights by 1e-15 change the outputs by ")


def test_what_the_basic_network_cannot_do_either_says_so():
    class Loops(torch.nn.Sequential):
        def forward(self, x):
            x = super().forward(x)
            return x if x.sum() > 0 else -x

    x = torch.rand(2, 3, 8, 8)
    subject = Subject(Prepared(Loops(torch.nn.Conv2d(3, 4, 3)).eval(), (x,), (x,), [3, 8, 8]))
    with pytest.raises(AssertionError, match="the basic network fails too: "):
        SAMPLED["onnx"](subject)
