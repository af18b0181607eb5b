import json
from dataclasses import replace
from functools import partial

import pytest

import cpu
from cost_table import markdown, summary, tables
from environment import Environment, physical_cores
from icnets.support.rounds import interleaved
from rows import Row, latest, read


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Runs the program on tiny networks and gives the lines of its results."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # which the program sets: put back afterwards
    monkeypatch.setenv("CI", "true")  # for OpenVINO's import
    monkeypatch.setattr("cpu.interleaved", partial(interleaved, min_seconds=0.01))
    out = tmp_path / "rows.jsonl"

    def main(*args: str) -> list[str]:
        where = ["--out", str(out), "--cache", str(tmp_path / "cache"), "--threads", "1", "--rounds", "2"]
        assert cpu.main([*where, "--networks", "resnet18", *args]) == 0
        return out.read_text().splitlines() if out.exists() else []

    return main


@pytest.mark.slow
def test_a_row_for_every_network_engine_and_batch(run, capsys):
    lines = run("--engines", "eager", "training", "--variants", "basic", "ic-all", "deeper")
    assert len(lines) == 3 * (2 + 2)
    rows = [Row.from_json(line) for line in lines]
    cells = [("eager", 1), ("eager", 8), ("training", 1), ("training", 8)]
    assert {(r.variant, r.engine, r.batch) for r in rows} == {
        (v, *cell) for v in ("basic", "ic-all", "deeper") for cell in cells
    }
    for row in rows:
        assert row.seconds > 0
        assert row.rounds == 2
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
        assert (row.memory is not None) == (row.engine == "training")
        assert row.model == ("resnet34" if row.variant == "deeper" else "resnet18")
        assert row.environment.threads == 1
        assert {"torch", "timm"} <= set(row.environment.versions)
        if row.variant == "basic":
            assert row.ratio.median == 1
        if row.variant == "deeper":
            assert row.to_deeper.median == 1
    printed = capsys.readouterr().out
    assert "training step, eager, batch 8" in printed
    assert "IC, every conv, to resnet34" in printed


@pytest.mark.slow
def test_what_is_there_is_skipped_unless_asked_for_again(run, monkeypatch):
    args = ("--engines", "eager", "--batches", "1")
    first = run(*args, "--variants", "ic-all")
    assert [json.loads(line)["variant"] for line in first] == ["basic", "ic-all"]
    assert run(*args, "--variants", "ic-all") == first
    more = run(*args, "--variants", "ic-all", "eca")  # the basic network runs again, its row stays
    assert more[:2] == first
    assert [json.loads(line)["variant"] for line in more[2:]] == ["eca"]
    assert len(run(*args, "--variants", "eca", "--again")) == len(more) + 2
    monkeypatch.setattr("environment.PACKAGES", ("torch",))  # other versions: another measurement
    assert len(run(*args, "--variants", "ic-all")) == len(more) + 4


def test_rows_of_other_sources_are_kept_and_named(run, capsys, monkeypatch):
    args = ("--engines", "eager", "--batches", "1", "--variants", "basic")
    lines = run(*args)
    monkeypatch.setattr("environment._sources", lambda package: "others")
    assert run(*args) == lines
    assert "1 rows are of other sources" in capsys.readouterr().err


@pytest.mark.slow
def test_artifacts_are_made_once_and_belong_to_their_sources(run, tmp_path):
    args = ("--engines", "onnx", "--variants", "basic")

    def artifacts() -> dict:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.onnx")}

    assert run(*args, "--prepare") == []
    made = artifacts()
    assert {path.name for path in made} == {"resnet18-basic.onnx"}
    assert [(r["engine"], r["batch"]) for r in map(json.loads, run(*args))] == [("onnx", 1), ("onnx", 8)]
    assert artifacts() == made
    here = Environment.here(1)
    folder = cpu._cache(tmp_path / "cache", here)
    assert all(path.parent == folder for path in made)
    assert cpu._cache(tmp_path / "cache", replace(here, sources="others")) != folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["deployed", "compile", "deployed-compile", "openvino"])
def test_every_engine_runs(run, engine):
    lines = run("--engines", engine, "--batches", "8", "--variants", "ic-all")
    assert [json.loads(line)["engine"] for line in lines] == [engine] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--engines", "gpu"], "invalid choice: 'gpu'"),
        (["--networks", "vgg16"], "invalid choice: 'vgg16'"),
    ],
)
def test_bad_arguments_are_named(args, message, capsys):
    with pytest.raises(SystemExit):
        cpu.main(args)
    assert message in capsys.readouterr().err


def test_a_missing_engine_names_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr("engines.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cpu.main(["--engines", "onnx"])
    assert "onnx needs onnxruntime, onnx, onnxscript: pip install 'icnets[export]'" in capsys.readouterr().err


def test_the_short_form_is_small_and_leaves_the_results_alone():
    args = cpu._arguments(["--quick", "--rounds", "9"])
    assert (args.networks, args.rounds, args.again) == (["resnet50"], 9, True)
    assert args.out != cpu.RESULTS
    assert len(list(cpu.groups(args))) == 5


def test_threads_are_cores_that_this_process_may_use():
    assert 1 <= physical_cores() <= (len(cpu.os.sched_getaffinity(0)) if hasattr(cpu.os, "sched_getaffinity") else 4096)


# Tables.


def spread(median: float) -> dict:
    return {"median": round(median, 4), "low": round(median - 0.01, 4), "high": round(median + 0.01, 4)}


def row(variant: str, engine: str = "eager", batch: int = 1, ratio: float = 1.0, **changes) -> Row:
    memory = None
    if engine == "training":
        memory = {"saved": int(ratio * 100 * 2**20), "held": int(ratio * 110 * 2**20), "peak": int(ratio * 2**28)}
    fields = {
        "network": "resnet50",
        "variant": variant,
        "engine": engine,
        "batch": batch,
        "model": "resnet101" if variant == "deeper" else "resnet50",
        "image_size": 224,
        "seconds": round(0.05 * ratio, 4),
        "ratio": spread(ratio),
        "to_deeper": spread(ratio / 2),
        "rounds": 15,
        "memory": memory,
        "environment": {"cpu": "A CPU", "threads": 2, "versions": {"torch": "2.15.0"}, "sources": "0"},
        "date": "2026-01-02T03:04:05+00:00",
        **changes,
    }
    return Row.from_json(json.dumps(fields))


def test_a_row_survives_its_line(tmp_path):
    rows = [row("basic"), row("ic-all", "training", 8, 1.07), row("deeper", to_deeper=None)]
    file = tmp_path / "rows.jsonl"
    cpu.append(file, rows[:1])
    cpu.append(file, rows[1:])
    assert read(file) == rows
    assert read(tmp_path / "none.jsonl") == []
    assert json.loads(row("basic", seconds=0.123456789).to_json())["seconds"] == 0.12346


def test_table_has_ratios_to_basic_and_to_the_deeper_network():
    rows = [row("deeper", ratio=2.0), row("ic-all", ratio=1.1), row("basic")]
    (table,) = tables(rows)
    assert table.columns == ["engine", "basic", "IC, every conv", "resnet101", "IC, every conv, to resnet101"]
    assert table.rows == [
        ["eager, batch 1", "50.0 ms", "1.10 (1.09–1.11)", "2.00 (1.99–2.01)", "0.55 (0.54–0.56)"],
    ]


def test_summary_has_the_medians_of_one_network_and_batch():
    rows = [row(v, "eager", 8, ratio=r) for v, r in (("basic", 1.0), ("ic-all", 1.1), ("deeper", 1.8))]
    rows += [
        row("basic"),
        row("ic-all", ratio=1.3),
        row("ic-all", "training", 8, 1.07),
        row("basic", network="resnet18"),
    ]
    title, _, *table = summary(rows).splitlines()
    assert "resnet50, batch 8" in title
    assert table == ["| engine | IC, every conv | resnet101 |", "|---|---:|---:|", "| eager | ×1.10 | ×1.80 |"]


def test_table_has_the_memory_of_a_training_step():
    (table,) = tables([row("basic", "training", 8), row("ic-all", "training", 8, 1.02)])
    assert [line[:3] for line in table.rows] == [
        ["training step, eager, batch 8", "50.0 ms", "1.02 (1.01–1.03)"],
        ["– saved for backward", "100 MiB", "1.020"],
        ["– alive after forward", "110 MiB", "1.020"],
        ["– peak", "256 MiB", "1.020"],
    ]


def test_table_says_what_timm_lacks():
    (table,) = tables([row("basic", network="mobilenetv2_100"), row("ic-all", network="mobilenetv2_100")])
    assert table.columns == ["engine", "basic", "IC, every conv", "SE", "ECA"]
    assert table.rows[0][-2:] == ["not in timm", "not in timm"]


def test_the_last_row_of_a_key_and_of_one_machine_counts():
    elsewhere = {"cpu": "Another", "threads": 8, "versions": {}, "sources": ""}
    rows = [row("basic", environment=elsewhere), row("ic-all", ratio=1.5), row("basic"), row("ic-all", ratio=1.2)]
    found = latest(rows)
    assert {key[1]: r.ratio.median for key, r in found.items()} == {"ic-all": 1.2, "basic": 1.0}
    text = markdown(rows)
    assert "1.20 (1.19–1.21)" in text
    assert "A CPU, 2 threads, 15 rounds, 2026-01-02; torch 2.15.0. Images of 224 pixels, float32." in text
    assert "1.50" not in text  # an earlier row of the same key


def test_a_page_that_needs_rows_takes_the_last_machine_that_has_them():
    elsewhere = {"cpu": "Another", "threads": 8, "versions": {}, "sources": ""}
    rows = [row("basic", environment=elsewhere), row("ic-all", ratio=1.5, environment=elsewhere), row("basic")]
    basic, ic = (row(variant).key for variant in ("basic", "ic-all"))
    assert latest(rows, [basic])[basic].environment.cpu == "A CPU"
    assert latest(rows, [basic, ic])[ic].ratio.median == 1.5
    assert latest([], [basic]) == {}
    with pytest.raises(ValueError, match=r"no machine has all.*A CPU.*lacks \('resnet50', 'deeper', 'eager', 8\)"):
        latest(rows, [("resnet50", "deeper", "eager", 8)])


def test_the_docs_have_each_machine_the_last_one_first():
    elsewhere = {"cpu": "Another", "threads": 8, "versions": {"torch": "2.11.0"}, "sources": ""}
    rows = [row("basic", environment=elsewhere), row("ic-all", ratio=1.5, environment=elsewhere)]
    rows += [row("basic"), row("ic-all", ratio=1.2)]
    here, _, other = markdown(rows).partition("### Another, 8 threads")
    assert here.startswith("### A CPU, 2 threads")
    assert "1.20 (1.19–1.21)" in here
    assert "1.50" not in here
    assert "1.50 (1.49–1.51)" in other
    assert "Another, 8 threads, 15 rounds, 2026-01-02; torch 2.11.0." in other


def test_without_rows_the_docs_say_so():
    assert markdown([]) == "Not measured yet."


def test_environment_tells_sources_and_threads_apart(tmp_path, monkeypatch):
    one = Environment.here(1)
    assert one.cpu
    assert one.digest() != Environment.here(2).digest()
    extra = tmp_path / "file.py"
    extra.write_text("a = 1")
    before = one.digest(extra)
    extra.write_text("a = 2")
    assert one.digest(extra) != before
