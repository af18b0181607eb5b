"""What the README shows is what the code does."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import digits_table
from coverage_page import markdown
from icnets.cli.app import COMMANDS, main
from icnets.comparison import lines

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_five_lines_run(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name))  # no download in a test
    names: dict = {}
    exec(code, names)
    assert "converted 53 layers" in capsys.readouterr().out
    x = torch.randn(1, 3, 64, 64)
    model = names["model"].eval()
    basic = create("resnet50").eval()
    basic.load_state_dict({k: v for k, v in model.state_dict().items() if k in basic.state_dict()})
    with torch.no_grad():
        assert torch.equal(model(x), basic(x))


@pytest.fixture
def update_docs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("update_docs")


def test_the_readmes_cost_table_is_made_from_its_lines(update_docs):
    assert README.count(update_docs.SHORT_START) == README.count(update_docs.SHORT_END) == 1
    assert update_docs.updated(README) == README
    assert len(README.splitlines()) <= 120


def test_the_readmes_numbers_are_those_of_the_evidence():
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    answers = re.findall(r"\*\*(\w+)\*\*: IC − basic: (\S+ \[\S+ \S+\]) pp", evidence.partition("What else")[0])
    text = " ".join(README.split())
    gain = {name: float(value.split()[0].replace("−", "-")) for name, value in answers}
    assert len(gain) == 3
    for extreme in (max(gain, key=gain.get), min(gain, key=gain.get)):
        assert dict(answers)[extreme] in text, extreme
    assert "on MNIST-1D half of them" in text
    for network in ("basic", "IC"):
        assert f"{network}, WLD: with 50 % of the epochs" in evidence
    coverage = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    timm, torchvision, smp = re.findall(r"- \w+: (\d+) of (\d+) ", coverage)
    assert f"{int(timm[0]):,} of timm's {int(timm[1]):,} architectures" in text
    assert f"{torchvision[0]} of torchvision's {torchvision[1]} " in text
    assert smp[0] == smp[1]
    assert f"all {smp[0]} of" in text


def test_the_comparison_of_digits_has_seeds_and_is_told_as_it_was_on_two_processors():
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (digits_table.RESULTS, digits_table.OTHER)]
    basic, ratios = [], []
    for results in found:
        rows = {row["name"]: row["cost"]["latency"] for row in results["methods"]}
        basic.append(rows["basic"]["ms_per_image"])
        ratios.append(rows["IC, warm start"]["ratio"])
        assert len(results["settings"]["seeds"]) >= 3
    assert basic[1] > basic[0]
    assert ratios[1] < ratios[0]
    assert found[0]["machine"]["cpu_capability"] == "AVX512"
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert digits_table.section() in page  # "no row can be told from its control" is counted there


def test_the_table_of_trained_networks_is_made_from_its_lines(update_docs):
    trained = importlib.import_module("trained_networks")
    page = (trained.PAGE).read_text(encoding="utf-8")
    assert page.count(trained.START) == page.count(trained.END) == 1
    assert trained.updated(page) == page


def test_the_cost_tables_are_made_from_their_lines(update_docs):
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert page.count(update_docs.CPU_START) == page.count(update_docs.CPU_END) == 1
    assert update_docs.updated_cost(page, update_docs.CPU_RESULTS) == page


def test_what_is_said_of_two_processors_is_in_the_lines(update_docs):
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    found = update_docs.rows.read(update_docs.CPU_RESULTS)
    machines = dict.fromkeys(row.machine for row in found if row.machine[0].startswith("AMD"))
    older, newer = (update_docs.rows.latest([row for row in found if row.machine == m]) for m in machines)
    both = [key for key in newer if key in older and key[0] == "resnet50"]
    basic = [newer[key].seconds / older[key].seconds for key in both if key[1] == "basic"]
    assert f"takes {min(basic):.2f} to {max(basic):.2f} of the time" in page
    apart = [abs(newer[k].ratio.median - older[k].ratio.median) for k in both if k[1] in ("ic-all", "ic-kxk")]
    assert len(apart) >= 20
    assert max(apart) <= float(re.search(r"differ by (\S+) at most", page)[1])


def test_the_page_of_coverage_is_made_from_its_lines():
    found = lines.read(RESULTS / "coverage.jsonl")
    assert markdown(found) == (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")


def test_the_counts_of_timms_and_torchvisions_own_tests_are_those_of_their_files():
    names = ("timm", "torchvision", "torchvision_basic")
    timm, ours, basic = (json.loads((RESULTS / f"upstream_{n}.json").read_text(encoding="utf-8")) for n in names)
    page = " ".join((ROOT / "docs" / "convert.md").read_text(encoding="utf-8").split())
    assert (timm["networks"], ours["networks"], basic["networks"]) == ("IC", "IC", "basic")
    passed, skipped, failed = (timm["total"][name] for name in ("passed", "skipped", "failed"))
    assert f"{passed:,} passed, {skipped} skipped; the {failed} others are TorchScript's" in page
    assert len(timm["failures"]) == failed
    assert all("torchscript" in name for name in timm["failures"])
    total = ours["total"]
    assert f"{total['passed']} passed, {total['skipped']} skipped, {total['failed']} failed" in page
    new = set(ours["failures"]) - set(basic["failures"])
    assert f"{len(basic['failures'])} of these fail in the same way for the basic networks" in page
    assert {name: ours["failures"][name] for name in basic["failures"]} == basic["failures"]
    assert f"the other {len(new)} count trainable parameters" in page
    assert {name.partition("[")[0] for name in new} == {"test_detection_model_trainable_backbone_layers"}
    assert len(ours["failures"]) == total["failed"] == len(basic["failures"]) + len(new)


def test_the_counts_of_torchs_own_tests_are_those_of_their_files():
    names = ("torch", "torch_basic")
    ours, basic = (json.loads((RESULTS / f"upstream_{n}.json").read_text(encoding="utf-8")) for n in names)
    page = " ".join((ROOT / "docs" / "convert.md").read_text(encoding="utf-8").split())
    assert basic["failures"] == {}
    passed, failed = ours["total"]["passed"], len(ours["failures"])
    assert passed + failed == basic["total"]["passed"]
    assert f"{passed} passed where torch's layers pass {basic['total']['passed']}; the other {failed} are of" in page
    assert all("complex" in error for error in ours["failures"].values())


def test_the_page_of_networks_is_made_from_their_table(update_docs):
    assert update_docs.networks_page() == (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run([*command, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "convert_" in (tmp_path / "api.html").read_text(encoding="utf-8")
    assert (tmp_path / "images" / "evidence-networks.png").is_file()


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if python_blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in python_blocks(page):  # one after the other, as one reads them
        exec(compile(block, page.name, "exec"), names)


def test_pages_have_code():
    assert {"unit", "convert", "deploy", "train"} <= {page.stem for page in PAGES}


def command_of(line: str) -> str:
    return re.sub(r".*icnets(\.cli)? ", "", line).split()[0]


def commands() -> list[tuple[str, str]]:
    """Every ``icnets`` command in a block of the README or the docs, with its continued lines."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        for line in re.findall(r"^(?: {4}|)((?:icnets|torchrun .* -m icnets\.cli) [a-z].*)$", text, flags=re.MULTILINE):
            found.append((page.name, re.sub(r"\s#.*", "", line)))
    return [(page, line) for page, line in found if command_of(line) in COMMANDS]


@pytest.fixture(scope="module")
def options(request) -> dict[str, str]:
    """What each command's help says, all of it."""
    help_of = {}
    for command in sorted({command_of(line) for _, line in commands()}):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            for verb in {"hub": (["save"], ["push"])}.get(command, ([],)):
                main([command, *verb, "--help-all"])
        help_of[command] = re.sub(r"-\n\s*", "-", out.getvalue())  # argparse breaks lines at hyphens
    return help_of


def test_every_command_in_the_docs_knows_its_options(options):
    assert len(commands()) > 20
    for page, line in commands():
        command = command_of(line)
        for option in re.findall(r"(?<!\S)(--[a-z][\w.-]*)", line[line.index(f" {command}") :]):
            assert re.search(rf"{re.escape(option)}(?![\w-])", options[command]), (
                f"{page}: {command} has no {option}: {line}"
            )
