"""Every way in which a configuration can name code; this code leaves a file behind when it is imported or called."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse._common import parsing_settings

from icnets.cli import main
from icnets.cli.configuration import ALLOWED, allowed_imports, take_flag

TRAP = """\
from pathlib import Path
import torch
from lightning.pytorch import Callback

Path({mark!r}).touch()

class Net(torch.nn.Module):
    pass

class Call(Callback):
    def __call__(self, *args):
        pass

def net() -> torch.nn.Module:
    return Net()

def call(*args):
    pass
"""

Refuse = Callable[..., str]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells of an import of ``trap`` or ``torchtrap``."""
    mark = tmp_path / "mark"
    (tmp_path / "path").mkdir()
    for name in ("trap", "torchtrap"):
        (tmp_path / "path" / f"{name}.py").write_text(TRAP.format(mark=str(mark)))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(tmp_path)
    return mark


def write(name: str, **options: Any) -> list[str]:
    Path(name).write_text(yaml.safe_dump(options))
    return ["--config", name]


def options(key: str, value: Any) -> dict[str, Any]:
    """Options in force with one more, whose key is dotted."""
    found: dict[str, Any] = {"model": {"model": "resnet10t"}}
    *groups, last = key.split(".")
    at = found
    for group in groups:
        at = at.setdefault(group, {})
    at[last] = value
    return found


@pytest.fixture
def refused(trap: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs the program, which must refuse in one line, having imported and called nothing; gives the line."""

    def check(*argv: str) -> str:
        before = set(Path().rglob("*"))
        assert main(list(argv)) == 2
        assert not {"trap", "torchtrap"} & set(sys.modules)
        assert set(Path().rglob("*")) == before
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return check


def lambda_callback(value: Any) -> list[dict[str, Any]]:
    return [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": value}}]


WAYS: list[tuple[str, Any, str]] = [
    ("model.model", {"class_path": "trap.Net"}, "trap.Net"),
    ("model.model", {"class_path": "trap.net"}, "trap.net"),
    ("model.model", {"class_path": "torchtrap.Net"}, "torchtrap.Net"),
    ("model.ic", {"class_path": "trap.Net"}, "trap.Net"),
    ("model.distillation", {"class_path": "trap.Net"}, "trap.Net"),
    ("model.distillation", {"init_args": {"schedule": {"class_path": "trap.Net"}}}, "trap.Net"),
    ("model.model_options", {"act_layer": {"class_path": "trap.Net"}}, "trap.Net"),
    ("model.model_options", {"list": [{"class_path": "trap.Net"}]}, "trap.Net"),
    ("model.model_options", {"class_path": "trap.Net"}, "trap.Net"),
    ("trainer.callbacks", ["trap.Call"], "trap.Call"),
    ("trainer.strategy", {"class_path": "trap.Call"}, "trap.Call"),
    ("trainer.callbacks", lambda_callback("trap.call"), "trap.call"),
    ("trainer.callbacks", lambda_callback({"class_path": "trap.Call"}), "trap.Call"),
    ("trainer.callbacks", lambda_callback("os.mkdir"), "os.mkdir"),
    ("trainer.callbacks", lambda_callback("builtins.exec"), "builtins.exec"),
    # Through an allowed package, to what it imports itself.
    ("trainer.callbacks", lambda_callback("torch.os.mkdir"), "posix.mkdir"),
    ("trainer.callbacks", lambda_callback("torch.builtins.exec"), "builtins.exec"),
    ("trainer.callbacks", lambda_callback("icnets.cli.app.Path.mkdir"), "pathlib.Path.mkdir"),
    ("model.model", {"class_path": "torch.functools.partial"}, "functools.partial"),
]


@pytest.mark.parametrize(("key", "value", "name"), WAYS, ids=[f"{key}={value}" for key, value, _ in WAYS])
def test_ways_through_a_configuration(refused: Refuse, key: str, value: Any, name: str) -> None:
    line = refused("fit", *write("run.yaml", **options(key, value)))
    packages = "icnets, lightning, timm, torch and torchvision"
    assert line == (
        f"icnets: error: {name} was not imported: a configuration may name classes of {packages} only; "
        "if you trust it, give --allow-imports true\n"
    )


def test_what_loads_other_code_is_refused_in_allowed_packages(refused: Refuse) -> None:
    spec = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "stranger/network", "model": "net"}}
    line = refused("fit", *write("run.yaml", **options("model.model", spec)))
    assert "torch.hub.load was not imported: it loads or runs code from elsewhere" in line


def test_classes_of_any_type_are_not_made(refused: Refuse) -> None:
    spec = {"class_path": "torch.utils.tensorboard.SummaryWriter", "init_args": {"log_dir": "made"}}
    assert "act" in refused("fit", *write("run.yaml", **options("model.model_options", {"act": spec})))


def test_files_that_are_named_by_files(refused: Refuse) -> None:
    write("model.yaml", model={"class_path": "trap.Net"})
    assert "trap.Net was not imported" in refused("fit", *write("run.yaml", model="model.yaml"))
    write("inner.yaml", model={"model": {"class_path": "trap.Net"}})
    refused("fit", *write("run.yaml", config="inner.yaml"))
    Path("link.yaml").symlink_to("inner.yaml")
    assert "trap.Net was not imported" in refused("fit", "--config", "link.yaml")


def test_yaml_tags(refused: Refuse) -> None:
    for tag in ("object/apply:os.mkdir [made]", "name:trap.Net ''", "module:trap ''", "object:trap.Net {}"):
        Path("run.yaml").write_text(f"model: {{model: !!python/{tag}}}\n")
        assert "could not determine a constructor for the tag" in refused("fit", "--config", "run.yaml")


def test_the_command_line_and_environment(refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "trap.Net was not imported" in refused("fit", "--model.model.class_path", "trap.Net")
    assert "trap.Call was not imported" in refused("fit", "--trainer.callbacks.help=trap.Call")
    assert "no network 'trap.Net'" in refused("fit", "--model.model", "trap.Net")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    write("run.yaml", **options("trainer.callbacks", "trap.Call"))
    monkeypatch.setenv("PL_CONFIG", "run.yaml")
    assert "trap.Call was not imported" in refused("fit", "--model.model", "resnet10t")


def test_the_configuration_of_a_run(refused: Refuse) -> None:
    Path("runs/stranger/checkpoints").mkdir(parents=True)
    Path("runs/stranger/checkpoints/best.ckpt").touch()
    write("runs/stranger/config.yaml", **options("trainer.callbacks", "trap.Call"))
    assert "trap.Call was not imported" in refused("test", "--name", "stranger", "--ckpt_path", "best")


def test_recipes(refused: Refuse) -> None:
    network = {"name": "resnet10t", "options": {"act_layer": {"class_path": "trap.Net"}}}
    for settings in (
        {"network": network},
        {"methods": [{"name": "basic"}, {"name": "SE", "options": network["options"]}]},
    ):
        line = refused("compare", *write("recipe.yaml", **settings))
        assert "trap.Net was not imported" in line
        assert line.endswith("; remove it\n")


def test_a_configuration_cannot_grant_itself_the_right(refused: Refuse) -> None:
    for name in ("allow_imports", "allow-imports"):
        spec = options("model.model", {"class_path": "trap.Net"})
        line = refused("fit", *write("run.yaml", **spec, **{name: True}))
        assert "trap.Net was not imported" in line or f"unknown option {name}" in line


@pytest.mark.parametrize("flag", [["--allow-imports"], ["--allow-imports", "true"], ["--allow-imports=true"]])
def test_the_command_line_can(trap: Path, capsys: pytest.CaptureFixture[str], flag: list[str]) -> None:
    config = write("run.yaml", **options("trainer.callbacks", "trap.Call"))
    assert main(["fit", *flag, *config, "--print_config"]) == 0
    assert "class_path: trap.Call" in capsys.readouterr().out
    assert trap.exists()


def test_classes_of_allowed_packages(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = options("model.model", {"class_path": "torchvision.models.AlexNet", "init_args": {"num_classes": 10}})
    spec["trainer"] = {"callbacks": "LearningRateMonitor", "max_time": "00:00:01:00"}
    spec["model"]["distillation"] = {"class_path": "icnets.WeakLogitDistillation"}
    before = dict(parsing_settings)
    assert main(["fit", *write("run.yaml", **spec), "--print_config"]) == 0
    assert "class_path: torchvision.models.AlexNet" in capsys.readouterr().out
    assert parsing_settings == before


def test_the_guard_ends_with_its_block() -> None:
    before = dict(parsing_settings)

    def fail() -> None:
        with allowed_imports():
            assert all(parsing_settings["import_path_verdicts"][name] for name in ALLOWED)
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        fail()
    assert parsing_settings == before


def test_the_flag() -> None:
    assert take_flag(["fit", "--name", "a"]) == (["fit", "--name", "a"], False)
    assert take_flag(["fit", "--allow-imports", "--name", "a"]) == (["fit", "--name", "a"], True)
    assert take_flag(["--allow-imports", "true", "--allow-imports=false", "x"]) == (["x"], False)
    with pytest.raises(ValueError, match=r"argument --allow-imports: invalid choice: 'yes' \(choose from"):
        take_flag(["--allow-imports=yes"])
