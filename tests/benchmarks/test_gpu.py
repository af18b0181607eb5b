import json

import pytest
import torch

import gpu as bench
from networks import Family


@pytest.fixture
def run(monkeypatch, tmp_path):
    def sizes(*layers):
        # Not under 16: oneDNN's bfloat16 gradient of a narrower 1x1 with a stride crashes (oneDNN issue 6035).
        return {"channels": (16, 16, 16, 16), "layers": layers, "num_classes": 7}

    family = Family("resnet18", "resnet34", True, 64, sizes(1, 1, 1, 1), sizes(1, 1, 1, 2))
    for name in list(bench.NETWORKS):
        monkeypatch.setitem(bench.NETWORKS, name, family)
    out = tmp_path / "gpu.jsonl"

    def main(*args):
        where = ["--out", str(out), "--rounds", "2", "--seconds", "0.01"]
        if not torch.cuda.is_available():
            where += ["--device", "cpu"]
        assert bench.main([*where, "--networks", "resnet50", "--image-size", "64", *args]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    return main


@pytest.mark.slow
def test_a_row_for_every_variant_mode_and_batch(run, capsys):
    args = ("--engines", "eager", "triton", "--batches", "1", "2", "--variants", "basic", "ic-all", "deeper")
    rows = [row for row in run(*args) if "kernel" not in row]
    assert len(rows) == 3 * 2 * 2 * 2
    assert [row["batch"] for row in rows][:12] == [2] * 12  # the largest first
    for row in rows:
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"], rel=1e-3)
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["to_deeper"]["median"] > 0
        assert {"torch", "timm"} <= set(row["environment"]["versions"])
        if row["variant"] == "basic":
            assert row["ratio"]["median"] == 1
    assert "resnet50 train eager 2: basic 1.000, ic-all " in capsys.readouterr().out


@pytest.mark.slow
def test_it_goes_on_where_it_was(run, capsys):
    args = ("--engines", "eager", "--batches", "1", "--variants", "basic")
    first = run(*args, "--modes", "train")
    assert run(*args, "--modes", "train") == first
    more = run(*args)
    assert more[: len(first)] == first
    assert [row["mode"] for row in more[len(first) :]] == ["inference"]
    assert len(run(*args, "--again")) >= len(more) + 2
    capsys.readouterr()
    run(*args, "--minutes", "0", "--again")
    assert "0 minutes are over; the same command goes on" in capsys.readouterr().err


def test_what_fails_says_why_and_the_rest_goes_on(run, monkeypatch):
    step = bench._step

    def fail(family, variant, *rest):
        if variant == "deeper":
            raise torch.OutOfMemoryError("no memory\nat all")
        return step(family, variant, *rest)

    monkeypatch.setattr(bench, "_step", fail)
    args = ("--engines", "eager", "--modes", "train", "--batches", "1", "--variants", "basic", "deeper")
    basic, deeper = (row for row in run(*args) if "kernel" not in row)
    assert deeper["failed"] == "OutOfMemoryError: no memory"
    assert "to_deeper" not in basic


def test_bad_arguments_are_named(capsys):
    for args, message in (
        (["--variants", "ic-all"], "basic, which ratios are to, must be among them"),
        (["--device", "cuda"], "torch sees no GPU"),
    ):
        if "cuda" in args and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit):
            bench.main(args)
        assert message in capsys.readouterr().err
