"""A whole grid, small: killed and continued, by several processes, and what its mistakes look like."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datafiles import write_cifar, write_folder
from icnets.cli.compare import main
from icnets.comparison import lines
from study_results import Cell, Results

STUDY = """
name: tiny
data: {train_size: 100, val_fraction: 0.2, image_size: 16, batch_size: 50}
imports: {cifar10: "studies.cifar:CIFAR10", mnist1d: "studies.mnist1d:MNIST1D"}
network: {name: resnet10t, options: {channels: [8, 8, 8, 8], stem_width: 8}}
networks:
  - {name: basic}
  - {name: IC, ic: {}}
  - {name: wider, options: {channels: [16, 8, 8, 8]}}
  - {name: SE, network: seresnet18, options: {channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}
methods:
  - {name: scratch}
  - {name: WLD, teacher: 0.5, wld: {temperature: 2.0, schedule: {kind: constant}}}
  - {name: surpass, wld: {surpass_patience: 1}}
  - {name: gain, start: gain, lr: 0.03}
  - {name: calibrate + WLD, start: calibrate, wld: {}}
recipes:
  - {name: plain, training: {epochs: 2}}
  - name: strong
    training: {epochs: 2, optimizer: adamw, lr: 0.002, weight_decay: 0.05, ema: 0.9}
    data: {mixup: 0.2, mix_smoothing: 0.1}
parts:
  - {networks: [basic, IC, wider, SE], seeds: [0, 1]}
  - {networks: [basic, IC], methods: [WLD, surpass, gain, calibrate + WLD], budgets: [1.0, 0.5], seeds: [0]}
  - {networks: [basic, IC], methods: [scratch, WLD], recipes: [strong], seeds: [1]}
"""
ROOT = Path(__file__).parents[2]
RUNS = 8 + 16 + 4 + 2  # the last two: teachers at half of their training that no part names


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY)
    return path


def _arguments(config: Path, out: Path, workers: int = 1) -> list[str]:
    return ["--config", str(config), "--out", str(out), "--workers", str(workers), "--allow-imports"]


def _lines(out: Path) -> list[dict]:
    """Without what tells of time or place: two undisturbed comparisons differ in nothing else."""
    clock = ("seconds", "epoch_seconds", "latency", "machine")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines.read(out / "lines.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main(_arguments(config, out)) == 0
    return out


@pytest.mark.slow
def test_every_run_is_a_line(undisturbed: Path) -> None:
    header, *rest = lines.read(undisturbed / "lines.jsonl")
    assert header["kind"] == "study"
    assert header["sizes"] == {"train": 100, "val": 200, "test": 797}
    networks = [line for line in rest if line["kind"] == "network"]
    assert [line["name"] for line in networks] == ["basic", "IC", "wider", "SE"]
    assert networks[0]["latency"]["ratio"] == 1.0
    assert networks[1]["parameters_ic"] > 0 == networks[0]["parameters_ic"]
    runs = [line for line in rest if line["kind"] == "run"]
    assert len(runs) == len({line["id"] for line in runs}) == RUNS
    results = Results([header, *rest])
    assert results.values(Cell("basic")).keys() == {0, 1}
    assert all(0 < r["seconds"] < 60 and len(r["val_error"]) == r["epochs"] for r in runs)
    half = results.runs[Cell("IC", "gain", budget=0.5)][0]
    assert half["epochs"] == 1
    # "gain" keeps the function: before its first step the network gives every answer of the basic one.
    assert half["agreement"] == 1.0
    assert half["start_error"] == pytest.approx(results.runs[Cell("basic")][0]["val_error"][-1], abs=1e-3)


@pytest.mark.slow
def test_only_what_something_needs_is_kept(undisturbed: Path) -> None:
    runs = [line for line in lines.read(undisturbed / "lines.jsonl") if line["kind"] == "run"]
    kept = {path.stem for path in (undisturbed / "checkpoints").iterdir()}
    needed = {r["id"] for r in runs if r["network"] == "basic" and r["method"] == "scratch"}
    assert kept < needed
    assert len(kept) == 3  # plain: seed 0 in full and at a half; strong: seed 1 at a half


@pytest.mark.slow
def test_a_finished_study_does_nothing(undisturbed: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    before = (undisturbed / "lines.jsonl").read_bytes()
    capsys.readouterr()
    assert main(_arguments(config, undisturbed)) == 0
    assert (undisturbed / "lines.jsonl").read_bytes() == before
    printed = capsys.readouterr().out
    assert f"{RUNS} runs, 0 to do" in printed
    assert "measuring" not in printed
    assert "IC, calibrate + WLD" in printed


def _killed(config: Path, out: Path, workers: int, after: int) -> int:
    """Runs the study in a process of its own, kills that by SIGKILL after so many runs; the runs in the file then."""
    command = [sys.executable, "-m", "icnets.cli", "compare", *_arguments(config, out, workers)]
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT
        )
        try:
            for _ in range(2400):
                if _count(out) >= after or process.poll() is not None:
                    break
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL, out.with_suffix(".log").read_text()
    return _count(out)


def _count(out: Path) -> int:
    path = out / "lines.jsonl"
    return path.read_text().count('"kind":"run"') if path.is_file() else 0


@pytest.mark.slow
def test_killed_and_continued_it_ends_with_the_same_lines(undisturbed: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    done = _killed(config, out, workers=1, after=5)
    assert 5 <= done < RUNS
    # As a cut-off write and a lost checkpoint would leave it.
    with open(out / "lines.jsonl", "a") as file:
        file.write('{"kind":"run","id":"cut off in the mid')
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    assert main(_arguments(config, out)) == 0
    assert _lines(out) == _lines(undisturbed)


@pytest.mark.slow
def test_killed_with_two_processes_and_continued(undisturbed: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    assert _killed(config, out, workers=2, after=7) < RUNS
    assert main(_arguments(config, out, workers=2)) == 0
    assert _lines(out) == _lines(undisturbed)


@pytest.mark.slow
def test_lines_of_another_study_are_not_thrown_away(undisturbed: Path, config: Path, tmp_path: Path) -> None:
    kept = tmp_path / "lines.jsonl"
    kept.write_bytes((undisturbed / "lines.jsonl").read_bytes())
    parts = "[{networks: [basic], seeds: [0]}]"
    arguments = [*_arguments(config, tmp_path), "--parts", parts]
    with pytest.raises(ValueError, match=f"{RUNS - 1} of {RUNS} runs in .* are none of this comparison.*--prune true"):
        main(arguments)
    assert kept.read_bytes() == (undisturbed / "lines.jsonl").read_bytes()
    assert main([*arguments, "--prune", "true"]) == 0
    assert [line["kind"] for line in lines.read(kept)] == ["study", "network", "run"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("networks: [basic, IC, wider, SE]", "networks: [basis]"),
            "a part names 'basis' among its networks.*basic, IC",
        ),
        (("start: gain", "start: middle"), "'middle'; it must be scratch or basic, or a warm start: gain or calibrate"),
        (("teacher: 0.5", "teacher: 2"), "teacher of 'WLD' is 2.*a budget"),
        (("budgets: [1.0, 0.5]", "budgets: [0]"), "budgets of a part are"),
        (("seeds: [0, 1]", "seeds: [1, 1]"), "each once"),
        (("name: wider", "name: IC"), "2 networks are called 'IC'"),
        (("network: seresnet18", "network: seresnet81"), "no network 'seresnet81'"),
        (("temperature: 2.0", "temperature: 0"), "temperature"),
        (("{name: IC, ic: {}}", "{name: IC, ic: {warm_start: gain}}"), "has warm_start: gain but starts from scratch"),
        (("networks: [basic, IC], methods: [WLD", "networks: [wider], methods: [WLD"), "can't start from it"),
        (("train_size: 100", "kind: abacus"), "data.kind is 'abacus'; it must be one of images, cifar10, mnist1d"),
        (("train_size: 100", "kind: mnist1d, size: 3"), "mnist1d doesn't take these arguments"),
        (("ema: 0.9", "ema: 9"), "ema is 9"),
        (("parts:", "seeds: [4]\nparts:"), "seeds is given, but the parts and recipes of this grid say it"),
        (("parts:", "training: {lr: 0.5}\nparts:"), "training is given, but the parts and recipes of this grid"),
    ],
)
def test_mistakes_are_one_line_before_any_work(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in STUDY
    config = tmp_path / "study.yaml"
    config.write_text(STUDY.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        main(_arguments(config, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "lines.jsonl").exists()


@pytest.mark.slow
def test_the_same_study_of_other_data(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CIFAR-10's format and on a folder of class folders; where the data lies makes no other study of it."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # not the true set's digests
    parts = "[{networks: [basic, IC], seeds: [0]}, {networks: [IC], methods: [WLD], budgets: [0.5], seeds: [0]}]"
    common = ["--parts", parts, "--workers", "1"]
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
        write_cifar(place, 10)
    data = "{kind: cifar10, root: ROOT, val: 20, train: 60, batch_size: 20, shift: 4, hflip: true}"
    for place in places:
        arguments = [*_arguments(config, tmp_path / "cifar"), *common, "--data", data.replace("ROOT", str(place))]
        assert main(arguments) == 0
        written = lines.read(tmp_path / "cifar" / "lines.jsonl")
        assert [line["kind"] for line in written] == ["study"] + ["network"] * 2 + ["run"] * 4
        assert written[0]["sizes"] == {"train": 60, "val": 20, "test": 50}
        assert str(tmp_path) not in json.dumps(written)
        places[0].rename(tmp_path / "gone") if places[0].exists() else None
    write_folder(tmp_path / "images", splits=("train", "val"))
    data = f"{{root: {tmp_path / 'images'}, image_size: 32, batch_size: 4, val_fraction: 0.2}}"
    assert main([*_arguments(config, tmp_path / "folder"), *common, "--data", data]) == 0
    runs = [line for line in lines.read(tmp_path / "folder" / "lines.jsonl") if line["kind"] == "run"]
    assert all("auc" in run["test"] for run in runs)
    assert len(runs) == 4


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"kind":"study"}\n{"kind":\n{"kind":"run"}\n')
    with pytest.raises(ValueError, match="is damaged"):
        lines.read(path)
    path.write_text(json.dumps([1]) + "\n")
    with pytest.raises(ValueError, match="no line of a comparison"):
        lines.read(path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    again = lines.locked(tmp_path / "lock")
    with lines.locked(tmp_path / "lock"), pytest.raises(ValueError, match="another process is at work"), again:
        raise AssertionError
