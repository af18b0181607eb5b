"""One command that begins a run, and goes on with it however often it is repeated."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from icnets.cli import main
from icnets.training.fitting import require_one_step
from icnets.training.run_checkpoints import AtomicCheckpointIO

COMMAND = [
    *("fit", "--name", "auto", "--ckpt_path", "auto", "--model.model", "resnet10t", "--data.train_size", "20"),
    *("--model.model_options", "{channels: [4, 4, 4, 4], stem_width: 4}", "--trainer.max_epochs"),
]


pytestmark = pytest.mark.usefixtures("own_run")


def test_auto_begins_and_goes_on_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "1"]) == 0
    assert "going on" not in capsys.readouterr().out
    Path("runs/auto/.history.csv.0badcafe.tmp").touch()
    assert main([*COMMAND, "2"]) == 0
    assert not list(Path("runs/auto").glob(".*"))
    out = capsys.readouterr().out
    assert "going on from runs/auto/checkpoints/step-000000002.ckpt" in out
    assert "epoch 2/2" in out
    assert "epoch 1/2" not in out


def test_hosts_that_found_different_checkpoints() -> None:
    strategy = SimpleNamespace(broadcast=lambda value: 12)
    require_one_step(SimpleNamespace(strategy=strategy, global_step=12, global_rank=1))
    with pytest.raises(ValueError, match="process 1 would go on at step 0 and process 0 at step 12; give --runs"):
        require_one_step(SimpleNamespace(strategy=strategy, global_step=0, global_rank=1))


def test_a_configuration_is_replaced_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*COMMAND, "1"]) == 0
    before = Path("runs/auto/config.yaml").read_bytes()

    def half(path: Path, text: str, **options: object) -> None:
        assert "config.yaml" in path.name
        path.write_bytes(text[:20].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert main([*COMMAND, "2"]) == 2
    assert Path("runs/auto/config.yaml").read_bytes() == before


def test_checkpoints_are_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    written, save = list[Path](), AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: dict[str, object], path: str, storage_options: object) -> None:
        written.append(Path(path))
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    assert main([*COMMAND, "1"]) == 0
    assert {path.name for path in written} >= {path.name for path in Path("runs/auto/checkpoints").glob("*.ckpt")}
    assert written
