"""Kills a training at random moments, lets it go on, and compares its end bit for bit with an undisturbed one.

    python benchmarks/kill_matrix.py --kills 30

The training has everything that has a state: an IC network with dropout and drop path, a teacher with surpass-stop,
averaged weights, mixup, RandAugment, reading processes, accumulated gradients and checkpoints within epochs. It is
``icnets fit ... --ckpt_path auto`` in a process of its own, forked from this one to save the imports, and started anew
with the same arguments after each SIGKILL to its process group. A line per kill goes to results/kill_matrix.jsonl; the
exit status is 1 if any training ended differently.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from environment import Environment
from imagenet_like import Settings, write
from kill_phases import Phases
from run_states import differences

__all__ = ["Kill", "Run", "main", "measure", "prepare"]

RESULTS = Path(__file__).parent / "results" / "kill_matrix.jsonl"
NAME = "run"
NETWORK = {"channels": [8, 8, 16, 16], "stem_width": 8, "drop_rate": 0.1, "drop_path_rate": 0.1}
CLASSES = 3
LATEST = 300.0  # seconds after which a training hangs


@dataclass(frozen=True)
class Kill:
    """One kill, and what became of the training.

    Attributes:
        number: from 0.
        aim: "write", "validation" or "time": what the killer waited for.
        seconds: from the start of the process to its death.
        phase: what the process was at, and the optimizer step.
        unfinished: files that it left half written.
        resumed: the step from which the next process went on; 0: from the beginning.
        different: what differs at the end from the undisturbed training; nothing where all is equal.
        environment, date: as everywhere.
    """

    number: int
    aim: str
    seconds: float
    phase: str
    step: int
    unfinished: list[str]
    resumed: int
    different: list[str]
    environment: Environment
    date: str


class Run:
    """One training, in its own folder, that can be started, watched, killed and started again."""

    def __init__(self, work: Path, name: str, epochs: int) -> None:
        self.folder = work / name / NAME
        self.log = work / f"{name}.log"
        self.note = work / f"{name}.phase"
        self.arguments = _arguments(work, self.folder.parent, self.note, epochs)
        self.pid = 0

    def start(self) -> None:
        """Forks a process that runs ``icnets`` with its arguments, as the leader of a group."""
        self.note.unlink(missing_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            _become(self.arguments, self.log)
        self.began = time.perf_counter()

    def over(self) -> bool:
        """Whether the process has ended; RuntimeError if it failed, or hangs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and time.perf_counter() - self.began < LATEST:
            return False
        if pid == 0:
            self.kill()
        if pid == 0 or os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(f"the training failed or took over {LATEST:.0f} s: {self.log.read_text()[-2000:]}")
        return True

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Waits until something is so, or the process has ended; says which: False if it has ended."""
        while not until():
            if self.over():
                return False
            time.sleep(0.0005)
        return True

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def phase(self) -> tuple[str, int]:
        """What the process is at, and the optimizer step."""
        return Phases.read(self.note)

    def unfinished(self) -> list[str]:
        """Files that are being written, or were when the process died."""
        found = [*self.folder.glob(".*.tmp"), *(self.folder / "checkpoints").glob(".*.tmp")]
        return sorted(path.name.rsplit(".", 2)[0].removeprefix(".") for path in found)


def _become(arguments: list[str], log: Path) -> None:
    """In a forked process: what ``icnets ARGUMENTS > log`` does. Never returns."""
    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        from icnets.cli import main as program

        status = program(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _arguments(work: Path, runs: Path, note: Path, epochs: int) -> list[str]:
    options: dict[str, Any] = {
        "name": NAME, "runs": runs, "ckpt_path": "auto", "save_every": 2, "keep": 2, "ema": 0.9,
        "allow-imports": "true", "trainer.callbacks": "kill_phases.Phases", "trainer.callbacks.path": note,
        "trainer.accelerator": "cpu", "trainer.max_epochs": epochs, "trainer.accumulate_grad_batches": 2,
        "trainer.logger": "false",
        "model.model": "resnet10t", "model.model_options": json.dumps(NETWORK), "model.ic.layers": "all",
        "model.teacher": work / "teacher.safetensors", "model.distillation.surpass_patience": 2, "model.lr": 0.05,
        "data.root": work / "images", "data.image_size": 16, "data.batch_size": 4, "data.workers": 2,
        "data.mixup": 0.3, "data.auto_augment": "rand-m9-mstd0.5",
    }  # fmt: skip
    return ["fit", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def prepare(work: Path) -> None:
    """Images, 48 for training and 24 for validation, and an untrained teacher, which the student soon surpasses."""
    import torch

    from icnets import create_model, save

    write(work / "images", Settings(classes=CLASSES, train=16, val=8, scale=0.1))
    torch.manual_seed(1)
    options: dict[str, Any] = {key: NETWORK[key] for key in ("channels", "stem_width")}
    save(create_model("resnet10t", ic=None, num_classes=CLASSES, **options), work / "teacher.safetensors")


def moment(run: Run, aim: str, length: float, rng: random.Random) -> Callable[[], bool]:
    """When to kill: at the n-th write or validation, at any moment of it; or at any of ``length`` seconds."""
    if aim == "time":
        end = rng.uniform(0.02, 0.9) * length
        return lambda: time.perf_counter() - run.began > end
    count, late = rng.randint(1, 11) if aim == "write" else rng.randint(1, 4), rng.choice((0.0, rng.random() * 0.02))
    seen: set[Any] = set()

    def now() -> bool:
        phase, step = run.phase()
        if phase == ("save" if aim == "write" else "validation"):
            seen.add((phase, step))
        if len(seen) < count:
            return False
        if aim == "write" and not run.unfinished():
            return False
        time.sleep(late)
        return True

    return now


def disturb(run: Run, aim: str, length: float, rng: random.Random) -> tuple[float, str, int, list[str], int]:
    """Trains with one kill; tells when and where it hit, what lay half written, and the step it went on from."""
    run.start()
    while not run.wait(moment(run, aim, length, rng)):  # it ended before its moment came: another one
        shutil.rmtree(run.folder)
        run.log.unlink()
        run.start()
    seconds = time.perf_counter() - run.began
    run.kill()
    (phase, step), unfinished = run.phase(), run.unfinished()
    run.start()
    run.wait()
    resumed = re.findall(r"^going on from .*step-(\d+)\.ckpt$", run.log.read_text(), re.MULTILINE)
    return seconds, phase, step, unfinished, int(resumed[-1]) if resumed else 0


def measure(work: Path, kills: int, seed: int, epochs: int) -> Iterator[Kill]:
    """One kill after the other; RuntimeError for a training that fails."""
    prepare(work)
    environment = Environment.here(1)
    whole = Run(work, "whole", epochs)
    whole.start()
    whole.wait()
    length = time.perf_counter() - whole.began
    rng = random.Random(seed)
    for number in range(kills):
        run = Run(work, f"killed-{number}", epochs)
        aim = ("write", "validation", "time")[number % 3]
        found = disturb(run, aim, length, rng)
        different = differences(whole.folder, run.folder)
        yield Kill(number, aim, *found, different, environment, datetime.now(UTC).isoformat(timespec="seconds"))
        if not different:
            shutil.rmtree(run.folder.parent)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _line(kill: Kill) -> str:
    equal = "equal" if not kill.different else f"DIFFERENT: {', '.join(kill.different)}"
    half = ", ".join(kill.unfinished) or "-"
    where = f"{kill.phase:<10} {kill.step:>4}"
    return f"{kill.number:>3}  {kill.aim:<10} {kill.seconds:7.2f}  {where}  {half:<28} {kill.resumed:>7}  {equal}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if any training ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=4, help="of 12 batches, 6 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines; replaced")
    parser.add_argument("--work", type=Path, help="folder that keeps the trainings that differ; else none is kept")
    args = parser.parse_args(argv)

    import icnets.cli.fit  # noqa: F401 - once, for all the processes that are forked

    failed = 0
    print(
        f"{'':>3}  {'aim':<10} {'seconds':>7}  {'phase':<10} {'step':>4}  {'half written':<28} {'resumed':>7}  the end"
    )
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with _folder(args.work) as work, open(args.results, "w", encoding="utf-8") as file:
        for kill in measure(work, args.kills, args.seed, args.epochs):
            print(_line(kill), flush=True)
            print(json.dumps(asdict(kill)), file=file, flush=True)
            failed += bool(kill.different)
    print(f"{args.kills - failed} of {args.kills} trainings ended exactly as the undisturbed one")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
