import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import icnets
import icnets.checkpoint.safetensors_file
import update_help
from icnets.checkpoint.image_notes import read_notes
from icnets.cli.app import COMMANDS, main
from icnets.cli.shorthand import MISSING
from icnets.data.data_module import ImageData
from icnets.support.text import one_line
from icnets.training.run_checkpoints import last_checkpoints
from icnets.training.task import ClassificationTask
from training.folders import write_classes

CONF = Path(__file__).parents[1] / "conf"
BASIC, IC, FOLDER = (str(CONF / f"{name}.yaml") for name in ("digits_basic", "digits_ic", "folder"))


pytestmark = pytest.mark.usefixtures("own_run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder "runs" with a finished run "basic"; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["fit", "--config", BASIC, "--name", "basic", "--runs", str(folder / "runs")]) == 0
    return folder / "runs"


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run in ./runs."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


# Help.


def test_help_is_there_within_a_second() -> None:
    command = [sys.executable, "-m", "icnets.cli", "--help"]
    subprocess.run(command, check=True, capture_output=True)  # the files are in memory from here on
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1
    assert all(command in result.stdout for command in COMMANDS)


def test_without_a_command_there_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capsys.readouterr()
    assert main(["--help"]) == 0
    assert (bare.out, bare.err) == (capsys.readouterr().out, "")


def test_fit_without_a_network_says_so_before_anything_is_imported() -> None:
    code = "import sys; from icnets.cli import main; status = main(['fit', 'photos']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, f"icnets: error: {MISSING}\n")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "icnets.cli", "--help"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_another_pipe_that_breaks_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(command: str, rest: list[str]) -> int:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr("icnets.cli.app._run", run)
    assert main(["fit"]) == 2
    assert "a worker is gone" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: icnets {command}")
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", update_help.CHOSEN)
def test_pages_of_help_are_made_from_the_parsers(command: str) -> None:
    assert (update_help.PAGES / f"{command}.txt").read_text(encoding="utf-8") == update_help.page(command)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["predict", "a.safetensors", "photos", "--topk", "3"], "unknown option --topk; did you mean --top-k?"),
        (["compare", "--worker", "2"], "unknown option --worker; did you mean --workers?"),
        (["fit", "--model.model", "resnet10t", "--trainer.max_epoch", "2"], "did you mean --trainer.max_epochs?"),
    ],
)
def test_the_option_that_was_meant(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert hint in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"icnets {icnets.__version__}\n"


# The four commands around a training.


def test_fit_leaves_everything_in_its_folder(finished: Path) -> None:
    run = finished / "basic"
    files = ["batch.png", "checkpoints", "config.yaml", "confusion.png", "curves.png", "history.csv", "tensorboard"]
    assert sorted(p.name for p in run.iterdir()) == files
    steps = [path.name for path in last_checkpoints(run / "checkpoints")]
    assert steps == ["step-000000006.ckpt"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.safetensors", *steps]
    assert list((run / "tensorboard").glob("events.out.tfevents*"))
    with open(run / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["seed_everything"], config["model"]["model"], config["data"]["train_size"]) == (3, "resnet10t", 120)


def test_ic_with_distillation_from_the_basic_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_of_basic = str(runs / "basic" / "checkpoints" / "best.safetensors")
    arguments = ["--model.init_from", weights_of_basic, "--model.teacher", weights_of_basic]
    assert main(["fit", "--config", IC, "--name", "ic", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "ResNet with 11 IC units" in out
    assert out.endswith("files in runs/ic; next: icnets report runs/ic\n")
    assert err == ""
    network = icnets.load(runs / "ic" / "checkpoints" / "best.safetensors")
    assert len({name.rpartition(".")[0] for name, _ in icnets.ic_parameters(network)}) == 11
    shutil.rmtree(runs / "basic")  # what training started from isn't needed any more
    assert main(["test", "--name", "ic", "--ckpt_path", "last"]) == 0
    assert "test/top1" in capsys.readouterr().out


@pytest.mark.parametrize("units", [0, 21])
def test_a_named_network_from_trained_weights(tmp_path: Path, units: int) -> None:
    options = {"channels": [8, 8, 16, 16]}
    ic = icnets.ICConfig() if units else None
    network = icnets.create_model("resnet18", ic=ic, num_classes=10, in_chans=1, **options)
    icnets.save(network, "start.safetensors")
    arguments = ["--model.model", "ic_resnet18", "--model.model_options", str(options).replace("'", '"')]
    start = ["--model.init_from", "start.safetensors", "--name", "warm", "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", BASIC, *arguments, *start]) == 0
    if not units:
        Path("start.safetensors").unlink()
    trained = icnets.load("runs/warm/checkpoints/best.safetensors")
    assert any(name.endswith("gain") for name, _ in icnets.ic_parameters(trained)) is (units == 0)
    assert main(["validate", "--name", "warm", "--ckpt_path", "last"]) == 0


def test_no_checkpoint_is_recommended_that_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.max_epochs", "0"]) == 0
    assert capsys.readouterr().out.endswith("files in runs/new\n")


def test_runs_are_named_by_their_network(runs: Path) -> None:
    for number in (1, 2):
        assert main(["fit", "--config", BASIC, "--trainer.max_epochs", "1"]) == 0
        assert last_checkpoints(runs / f"resnet10t-{number}" / "checkpoints")


def test_validation_agrees_with_the_training(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--name", "basic", "--ckpt_path", "last"]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if "val/top1" in line)
    with open(runs / "basic" / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(shown.split("│")[2]) == pytest.approx(float(last["val/top1"]), abs=1e-6)


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--trainer.max_epochs", "4"]
    assert main(["fit", "--config", BASIC, "--name", "whole", *longer]) == 0

    def interrupt(self: ClassificationTask) -> None:
        if self.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_train_epoch_start", interrupt)
        assert main(["fit", "--config", BASIC, "--name", "parts", *longer]) == 130
    assert main(["fit", "--name", "parts", "--ckpt_path", "last"]) == 0
    assert "epoch 3/4" in capsys.readouterr().out
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    expected, found = (weights(last_checkpoints(run / "checkpoints")[0]) for run in (whole, parts))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    with open(parts / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lr", "0.5"], "was trained with lr 0.05, and lr is 0.5: a training goes on as it began"),
        (["--model.weight_decay", "0.5"], "was trained with weight_decay 0.0005, and weight_decay is 0.5"),
        (["--model.momentum", "0.5"], "was trained with momentum 0.9, and momentum is 0.5"),
        (["--model.optimizer", "adamw"], "was trained with optimizer sgd, and optimizer is adamw"),
        (["--model.model", "resnet18", "--model.model_options", "null"], "the checkpoint doesn't fit this network"),
    ],
)
def test_other_options_than_a_checkpoint_goes_on_with_are_an_error_and_leave_the_run_alone(
    runs: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    config, best = ((runs / "basic" / name).read_bytes() for name in ("config.yaml", "checkpoints/best.safetensors"))
    go_on = ["fit", "--name", "basic", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert main([*go_on, *options]) == 2
    assert message in capsys.readouterr().err
    assert (runs / "basic" / "config.yaml").read_bytes() == config
    assert (runs / "basic" / "checkpoints" / "best.safetensors").read_bytes() == best


def test_a_run_that_was_moved_knows_its_best(runs: Path) -> None:
    kept = runs / "basic" / "checkpoints" / "best.safetensors"
    assert main(["fit", "--name", "basic", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    with open(runs / "basic" / "history.csv", newline="") as file:
        best = max((row for row in csv.DictReader(file)), key=lambda row: float(row["val/top1"]))
    assert notes(kept)["epoch"] == best["epoch"]
    assert float(notes(kept)["val/top1"]) == pytest.approx(float(best["val/top1"]))


def test_a_run_alone_is_tested_with_its_best_weights(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tops = []
    for arguments in ([], ["--ckpt_path", "best"], ["--ckpt_path", "last"]):
        assert main(["test", "--name", "basic", *arguments]) == 0
        out = capsys.readouterr().out
        assert out.endswith("files in runs/basic: test.json, and the worst mistakes in mistakes.png\n")
        record = json.loads((runs / "basic" / "test.json").read_text())
        assert str(record["top1"])[:7] in out
        tops.append((record.pop("checkpoint"), record))
    assert [name for name, _ in tops] == [f"{BEST}.safetensors"] * 2 + [f"runs/basic/checkpoints/{STEP}.ckpt"]
    assert tops[0] == tops[1]
    network = icnets.load(f"{BEST}.safetensors").eval()
    data = ImageData(image_size=16)
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == target).sum()) for x, target in data.test_dataloader())
    assert tops[0][1]["top1"] == pytest.approx(right / 797, abs=2e-3)
    assert (runs / "basic" / "mistakes.png").is_file()
    assert main(["validate", "--name", "basic"]) == 0


def test_a_run_of_before_is_tested_with_its_best_checkpoint(runs: Path) -> None:
    folder = runs / "basic" / "checkpoints"
    (folder / f"{STEP}.ckpt").rename(folder / "best.ckpt")
    (folder / "best.safetensors").unlink()
    assert main(["test", "--name", "basic"]) == 0
    assert json.loads((runs / "basic" / "test.json").read_text())["checkpoint"] == f"{BEST}.ckpt"


def test_patience_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.lr", "1e-9", "--trainer.max_epochs", "9", "--patience", "2", "--data.mixup", "0"]
    assert main(["fit", "--config", BASIC, "--name", "a", *options]) == 0
    out = capsys.readouterr().out
    best = re.search(r"best val/top1 .* in epoch (\d) of (\d)\n", out)
    assert best is not None
    assert int(best[2]) == int(best[1]) + 2 < 9
    assert f"stopped after epoch {best[2]} of 9: no better val/top1 in 2 epochs (--patience)\n" in out


def test_the_average_is_resumed_and_tested(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", BASIC, "--name", "ema", "--ema", "0.9", "--model.lr_batch", "20"]
    assert main(["fit", *options]) == 0
    assert "; 40 images a step, 3 steps an epoch, lr 0.1" in capsys.readouterr().out  # 0.05 is meant for 20
    assert main(["fit", "--name", "ema", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    folder = Path("runs/ema/checkpoints")
    last = last_checkpoints(folder)[0]
    trained = torch.load(last, weights_only=True)["callbacks"]["WeightAverage"]["trained"]
    assert not torch.equal(weights(last)["network.fc.weight"], trained["fc.weight"])
    assert main(["test", "--name", "ema", "--ckpt_path", "last"]) == 0


def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", ant=12, bee=12)
    assert main(["fit", "--config", FOLDER, "--data.root", str(root), "--name", "photos"]) == 0
    assert main(["test", "--ckpt_path", "runs/photos/checkpoints/best.safetensors"]) == 0
    assert "ant" in capsys.readouterr().out


def test_recipes_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in ("fit_digits", "fit_folder"):
        path = CONF.parents[1] / "recipes" / f"{recipe}.yaml"
        assert main(["fit", "--config", str(path), "--print_config"]) == 0
        assert "max_epochs" in capsys.readouterr().out


def test_configurations_of_version_0_1_0_are_read() -> None:
    Path("old.yaml").write_text("output: null\ntarget: 0.95\nplan: false\nckpt_path: null\nweights_only: null\n")
    assert main(["fit", "--config", BASIC, "--config", "old.yaml", "--print_config"]) == 0


def test_a_configuration_that_names_what_is_gone_is_read() -> None:
    Path("old.yaml").write_text("model: {check_teacher: false}\n")
    assert main(["fit", "--config", BASIC, "--config", "old.yaml", "--name", "old", "--trainer.max_epochs", "1"]) == 0
    assert "check_teacher" not in Path("runs/old/config.yaml").read_text()


@pytest.mark.parametrize("config", [["--config", BASIC], [f"--config={BASIC}"], ["-c", BASIC]])
@pytest.mark.parametrize("before", [True, False])
def test_options_outrank_a_configuration_wherever_they_stand(
    config: list[str], before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seed_everything", "17", "--model.model", "resnet18", "--model.lr=0.123"]
    assert main(["fit", *(options + config if before else config + options), "--print_config"]) == 0
    chosen = yaml.safe_load(capsys.readouterr().out)
    assert (chosen["seed_everything"], chosen["model"]["model"], chosen["model"]["lr"]) == (17, "resnet18", 0.123)


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  lr: 0.01\n  momentum: 0.9\n  lr: 0.5\n", "'lr' twice, in lines 2 and 4"),
        ("seed_everything: 1\nmodel: {}\nseed_everything: 2\n", "'seed_everything' twice, in lines 1 and 3"),
        ("trainer:\n  callbacks:\n    - {class_path: A, class_path: B}\n", "'class_path' twice, in lines 3 and 3"),
    ],
)
def test_a_key_twice_is_an_error(command: str, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("twice.yaml").write_text(text)
    for given in (["--config", "twice.yaml"], ["--config=twice.yaml"]):
        assert main([command, *given]) == 2
        assert capsys.readouterr().err == f"icnets: error: twice.yaml has {message}; leave one of them\n"


# icnets convert.


def test_convert_keeps_the_function(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = runs / "basic" / "checkpoints" / "best.safetensors"
    assert main(["convert", str(source), "ic.safetensors", "--layers", "kxk"]) == 0
    out = capsys.readouterr().out
    assert "converted 11 layers to IC units" in out
    assert "wrote ic.safetensors" in out
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(icnets.load("ic.safetensors")(x), icnets.load(source)(x))


def test_convert_a_plain_state_dict(capsys: pytest.CaptureFixture[str]) -> None:
    network = icnets.create_model("resnet10t", ic=None, num_classes=7, in_chans=1).eval()
    torch.save(network.state_dict(), "plain.pth")
    sizes = ["--num-classes", "7", "--in-chans", "1"]
    assert main(["convert", "plain.pth", "ic.safetensors", "--model", "resnet10t", *sizes]) == 0
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(icnets.load("ic.safetensors")(x), network(x))
    assert main(["convert", "ic.safetensors", "again.safetensors"]) == 2
    assert capsys.readouterr().err == "icnets: error: ic.safetensors holds an IC network already\n"


def notes(path: str | Path) -> dict[str, str]:
    return icnets.checkpoint.safetensors_file.read(path)[2]


@pytest.mark.parametrize("source", ["best.safetensors", "step-000000006.ckpt"])
def test_convert_carries_what_is_known_of_the_images(runs: Path, source: str) -> None:
    folder = runs / "basic" / "checkpoints"
    known = notes(folder / "best.safetensors")
    assert {"class_names", "mean", "std", "image_size", "in_chans", "crop_pct", "interpolation"} <= known.keys()
    assert main(["convert", str(folder / source), "ic.safetensors"]) == 0
    found = notes("ic.safetensors")
    assert found == known if source == "best.safetensors" else found.items() <= known.items()
    assert read_notes(found) == read_notes(known)


@pytest.mark.parametrize("model", [(), ("--model", "test_resnet", "--num-classes", "2")])
def test_convert_keeps_notes_of_ones_own(model: tuple[str, ...]) -> None:
    network = icnets.create_model("test_resnet", ic=None, num_classes=2)
    icnets.save(network, "a.safetensors", metadata={"method": "mine", "class_names": "cat,dog"})
    assert main(["convert", "a.safetensors", "ic.safetensors", *model]) == 0
    assert notes("ic.safetensors") == {"method": "mine", "class_names": "cat,dog"}


def test_convert_says_which_weights_it_read(capsys: pytest.CaptureFixture[str]) -> None:
    network = icnets.create_model("test_resnet", ic=None, num_classes=2).eval()
    other = {key: value + 1 for key, value in network.state_dict().items()}
    average = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": other, "state_dict_ema": average, "epoch": 3}, "a.pth")
    assert main(["convert", "a.pth", "ic.safetensors", "--model", "test_resnet", "--num-classes", "2"]) == 0
    assert capsys.readouterr().out.startswith("read ['state_dict_ema'] and keys without 'module.' of a.pth\nconverted ")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(icnets.load("ic.safetensors")(x), network(x))


# Mistakes: each is one line and status 2.


@pytest.fixture
def mistakes(runs: Path, tmp_path: Path) -> Path:
    write_classes(tmp_path / "photos", ant=6, bee=6)
    write_classes(tmp_path / "empty", ant=6, bee=0)
    write_classes(tmp_path / "broken", ant=6, bee=6)
    for path in (tmp_path / "broken" / "bee").iterdir():
        path.write_bytes(b"no image")
    for split, name in (("train", "bee"), ("val", "cow")):
        write_classes(tmp_path / "differ" / split, **{"ant": 3, name: 3})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.ckpt").write_bytes(b"nonsense")
    torch.save({}, tmp_path / "empty.pth")
    (tmp_path / "runs" / "weights_alone" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "weights_alone" / "checkpoints" / "best.ckpt").touch()
    good = (runs / "basic" / "checkpoints" / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (tmp_path / "cut.ckpt").write_bytes((runs / "basic" / "checkpoints" / f"{STEP}.ckpt").read_bytes()[:5000])
    (tmp_path / "key.yaml").write_text("model:\n  model: resnet10t\n  lrr: 0.1\n")
    (tmp_path / "syntax.yaml").write_text("model: [resnet10t\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "latin.yaml").write_bytes("model: é\n".encode("latin-1"))
    (tmp_path / "deep.yaml").write_text(f"data: {'[' * 2000}{']' * 2000}\n")
    return tmp_path


FIT = ["fit", "--config", BASIC, "--name", "new"]
PHOTOS = ["fit", "--config", FOLDER, "--name", "new", "--data.root", "photos"]
BEST, STEP = "runs/basic/checkpoints/best", "step-000000006"
RUN = ["--name", "basic", "--ckpt_path", "best"]
CASES: list[tuple[list[str], str]] = [
    (["fitt"], "unknown command 'fitt'; did you mean fit?"),
    (["fit"], MISSING),
    (["fit", "photos", "--trainer.max_epochs", "1"], MISSING),
    (["fit", "nowhere", "--model", "resnet10t"], "nowhere is not a folder: data.root must hold train/ and val/, or *"),
    ([*FIT[:-1], "../x"], "name is '../x', which isn't below runs; give a plain --name, and --runs DIR for the rest"),
    ([*FIT[:-1], "/tmp/x"], "name is '/tmp/x', which isn't below runs; *"),
    (
        ["fit", "--name", "basic", "--ckpt_path", "last", "--trainer.max_epochs", "1"],
        "the checkpoint is of epoch 2, and trainer.max_epochs is 1: nothing is left to train; give *max_epochs 3 *",
    ),
    (["predict", "runs", "photos"], "runs is a folder of runs; give one of them: runs/basic, runs/weights_alone"),
    (
        ["profile", "resnet10t", "--image-size", "1", "--batch-size", "1", "--rounds", "2"],
        "resnet10t can't take a batch of shape (1, 3, 1, 1): Expected more than 1 value *-size or --batch-size",
    ),
    ([*FIT, "--model.lrr", "1"], "unknown option --model.lrr; did you mean --model.lr?"),
    ([*FIT, "--model.ic.layrs", "all"], "model.ic: unknown option layrs; did you mean layers?"),
    (["fit", "--config", "key.yaml"], "unknown option model.lrr; did you mean model.lr?"),
    (["fit", "--config", "none.yaml"], "config: File does not exist: '*none.yaml'"),
    (["fit", "--config", "syntax.yaml"], "Problems parsing config: while parsing *"),
    (["fit", "--config", "latin.yaml"], "the configuration is no UTF-8 text: *"),
    (["fit", "--config", "deep.yaml"], "the configuration is nested too deeply; it must be a mapping of options"),
    (["compare", "--config", "latin.yaml"], "the configuration is no UTF-8 text: *"),
    (["compare", "--config", "deep.yaml"], "the configuration is nested too deeply; it must be a mapping of options"),
    (
        ["fit", "--config", BASIC, "--model.model_options", "{channels: [8, x, 16, 16], stem_width: 8}"],
        "timm can't make resnet10t with the options {'channels': [8, 'x', 16, 16], 'stem_width': 8}: *; check them",
    ),
    (
        ["fit", "--config", BASIC, "--model.model_options", "{channels: [8, 8], stem_width: 8}"],
        "the network can't take images of shape (1, 16, 16): *",
    ),
    (["fit", "--config", "list.yaml"], "the configuration must be a mapping of options, not - 1"),
    ([*FIT, "--data.batch_size", "many"], "data.batch_size is 'many'; it must be a whole number"),
    ([*FIT, "--trainer.max_epochs", "ten"], "trainer.max_epochs is 'ten'; it must be a whole number"),
    ([*FIT, "--trainer.max_epochs", "-1"], "training has no end: give trainer.max_epochs or trainer.max_steps"),
    ([*FIT, "--model.lr", "-1"], "lr is -1.0; it must be positive"),
    ([*FIT, "--model.schedule", "flat"], "model.schedule is 'flat'; it must be one of one-cycle, cosine, step"),
    (
        [*FIT, "--model.model", "ic_resnet10t", "--model.model_options", "null"],
        "resnet10t has no ic_ name of its own; convert it by its name: --model.model resnet10t --model.ic.warm_start *",
    ),
    ([*FIT, "--model.model", "resnet19"], "timm * has no network 'resnet19'; near it: *"),
    ([*FIT, "--model.ic.layers", "some"], "layers is 'some'; it must be one of all, auto, kxk, no-stem"),
    ([*FIT, "--model.init_from", "none.pth"], "there is no checkpoint none.pth; check the path"),
    ([*FIT, "--model.init_from", "cut.safetensors"], "cut.safetensors is not a whole safetensors file (*"),
    ([*FIT, "--model.init_from", "bad.ckpt"], "bad.ckpt isn't a file of weights, but *; fetch or unpack*"),
    ([*FIT, "--model.teacher", "none.safetensors"], "there is no checkpoint none.safetensors; check the path"),
    ([*FIT, "--data.train_size", "5000"], "train_size is 5000, but 850 images are left beside 150 for validation*"),
    ([*FIT, "--data.in_chans", "2"], "in_chans is 2; images are read with 1 (grey) or 3 (colour) channels"),
    (
        [*FIT, "--model.lr", "1e30", "--trainer.max_epochs", "9"],
        "the loss is * at step * (epoch *, batch *); its images: *. Lower lr*",
    ),
    ([*FIT, "--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt; check ckpt_path, and the run's name"),
    ([*FIT, "--ckpt_path", "cut.ckpt"], "cut.ckpt is damaged or no checkpoint of icnets fit (*"),
    (
        [*FIT, "--ckpt_path", f"{BEST}.safetensors"],
        f"{BEST}.safetensors holds weights alone, and fit goes on from --ckpt_path last; *--model.init_from",
    ),
    (
        [*FIT, "--ckpt_path", f"runs/basic/checkpoints/{STEP}.ckpt", "--model.ic.layers", "all"],
        "the checkpoint doesn't fit this network, an IC*",
    ),
    (
        [*FIT[:-1], "basic"],
        "runs/basic holds a run already (*); give another --name, resume it with --ckpt_path last*",
    ),
    (
        [*FIT[:-1], "weights_alone"],
        "runs/weights_alone holds a run already (best.ckpt); give another --name*",
    ),
    ([*FIT, "--data.mean", "0.5"], "data.mean is '0.5'; it must be a list of numbers, such as '[0.5, 0.5, 0.5]'"),
    (
        [*PHOTOS[:-1], "nowhere"],
        "nowhere is not a folder: data.root must hold train/ and val/, or one folder per class",
    ),
    ([*PHOTOS[:-1], "nothing"], "nothing has no class folders: classification needs 2 or more*"),
    ([*PHOTOS[:-1], "empty"], "no images (.jpg, .png, .webp, ...) in class folder 'bee' of empty"),
    ([*PHOTOS[:-1], "broken"], "can't read the image broken/bee/*: it is no image by its content; *"),
    ([*PHOTOS[:-1], "differ"], "differ/val has other classes than differ/train: it lacks 'bee' and adds 'cow'"),
    ([*PHOTOS, "--data.auto_augment", "more"], "auto_augment is 'more'; timm understands e.g. rand-m9-mstd0.5*"),
    ([*PHOTOS, "--model.teacher", f"{BEST}.safetensors"], "the teacher *the data has 2 classes*"),
    (["test"], "test needs a trained network: give --name RUN, or --ckpt_path FILE"),
    (["test", "--name", "none"], "there is no run runs/none; check --name and --runs"),
    ([*FIT, "--patience", "0"], "patience is 0; it must be at least 1 epoch, or left out"),
    (["test", "--config", BASIC], "test needs a trained network: *"),
    (["test", "--ckpt_path", "best"], "ckpt_path is 'best', of which run? Give --name too"),
    (["test", "--name", "none", "--ckpt_path", "best"], "there is no run runs/none; check --name and --runs"),
    (["test", *RUN, "--data.root", "photos", "--data.train_size", "null"], "the checkpoint was trained on 10 classes*"),
    (["predict", "runs/basic", "nothing"], "no images (.jpg, .png, .webp, ...) in nothing"),
    (["convert"], "the following arguments are required: IN, OUT"),
    (["convert", "none.pth", "out.safetensors"], "there is no checkpoint none.pth; check the path"),
    (["convert", "bad.ckpt", "out.safetensors"], "bad.ckpt doesn't say which network it is of; give --model NAME (*"),
    (["convert", "nothing", "out.safetensors"], "nothing is a folder; give the file of weights in it"),
    (
        ["convert", "bad.ckpt", "--out", "out.safetensors"],
        "unknown option --out",
    ),
    (
        ["convert", "empty.pth", "out.safetensors", "--model", "resnet10t"],
        "empty.pth holds no state dict, but an empty*",
    ),
    (["convert", "bad.ckpt", "out.pth"], "OUT is out.pth; it must end in .safetensors"),
    (["convert", "bad.ckpt", "cut.safetensors"], "cut.safetensors exists already; give another OUT, or --force"),
    (["convert", "cut.safetensors", "out.safetensors"], "cut.safetensors is not a whole safetensors file (*"),
]


@pytest.mark.parametrize(
    ("argv", "message"), CASES, ids=[" ".join(a).replace(str(CONF), "conf") or "-" for a, _ in CASES]
)
def test_a_mistake_is_one_line(
    mistakes: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.endswith("\n")
    assert err.count("\n") == 1
    start, *rest = message.split("*")
    assert err.startswith(f"icnets: error: {start}")
    for part in rest:
        assert part in err
    if not rest:
        assert err == f"icnets: error: {message}\n"
    assert "Traceback" not in out
    # Nothing is left behind that a corrected command would stumble over.
    assert not Path("out.safetensors").exists()


def test_an_unreadable_image_in_a_worker(mistakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    assert main([*PHOTOS, "--data.workers", "1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("icnets: error: can't read the image photos/")
    assert err.count("\n") == 1


def test_a_failed_run_can_be_repeated_under_its_name(mistakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PHOTOS, "--model.teacher", f"{BEST}.safetensors"]) == 2
    assert main(PHOTOS) == 0


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ICNETS_DEBUG", "1")
    assert main([*FIT, "--model.lr", "-1"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "icnets: error: lr is -1.0; it must be positive"


def test_our_own_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(command: str, args: list[str], *, imports: bool) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("icnets.cli.fit._RunCLI", bug)
    with pytest.raises(KeyError, match="bug"):
        main(FIT)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(self: object, batch: object, batch_idx: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("icnets.training.task.ClassificationTask.training_step", interrupt)
    assert main(FIT) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "icnets: interrupted"
    monkeypatch.undo()
    batches = ClassificationTask.on_train_batch_start

    def later(self: ClassificationTask, batch: object, batch_idx: int) -> None:
        if self.global_step == 4:
            raise KeyboardInterrupt
        batches(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(ClassificationTask, "on_train_batch_start", later)
    monkeypatch.chdir(tmp_path)
    assert main(FIT) == 130
    line = "icnets: interrupted; go on by: icnets fit --name new --ckpt_path last"
    assert capsys.readouterr().err.splitlines()[-1] == line
    monkeypatch.setenv("RANK", "1")
    assert main([*FIT, "--overwrite", "true"]) == 130
    assert "interrupted" not in capsys.readouterr().err


def test_messages_of_other_kinds() -> None:
    assert one_line(FileNotFoundError(2, "No such file or directory", "a.yaml")) == "a.yaml: No such file or directory"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError()) == "ValueError"


def test_an_unreadable_image_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", ant=12, bee=12)
    broken = root / "ant" / "003.png"
    broken.write_bytes(broken.read_bytes()[:200])
    options = ["--config", FOLDER, "--data.root", str(root), "--name", "photos", "--data.max_unreadable", "1"]
    assert main(["fit", *options]) == 0
    assert "1 image skipped so far that can't be read: runs/photos/unreadable.txt" in capsys.readouterr().out
    assert Path("runs/photos/unreadable.txt").read_text() == f"{broken}\n"
    (root / "bee" / "004.png").write_bytes(b"")
    assert main(["fit", *options, "--overwrite", "true"]) == 2
    assert "2 images can't be read, and data.max_unreadable is 1:" in capsys.readouterr().err


def test_a_run_that_is_told_to_stop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ClassificationTask.on_train_batch_start

    def told(self: ClassificationTask, batch: object, batch_idx: int) -> None:
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        stop(self, batch, batch_idx)  # type: ignore[arg-type]

    auto = ["fit", "--config", BASIC, "--name", "a", "--ckpt_path", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_train_batch_start", told)
        assert main(auto) == 143
    assert (
        "told to stop; saved runs/a/checkpoints/step-000000005.ckpt; go on by: icnets fit --name a --ckpt_path last"
        in (capsys.readouterr().err)
    )
    assert main(auto) == 0
    assert last_checkpoints(Path("runs/a/checkpoints"))[0].name == "step-000000006.ckpt"
