"""Damages what the program reads, 200 times, and looks at what the program makes of it.

    python benchmarks/fuzz_inputs.py                # a table, and a line each in benchmarks/results/fuzz_inputs.jsonl
    python benchmarks/fuzz_inputs.py --only 17      # one of them, with all that it prints

What may become of a damaged file:

    error      the program ends with status 2 and one line that names the file; nothing is left half-written
    named      the program goes on, and says what it skipped
    harmless   what was damaged isn't read: the result is that of the whole file
    valid      nobody can find fault with it: an image that decodes, an option with another value

Everything else is a failure: a traceback, a time limit, a signal, an error of several lines or that doesn't say where,
a file left half-written, a result that differs without a word. The exit status is 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from fuzz_cases import CASES, Case, prepare
from fuzz_mutations import BYTES, STRUCTURE
from icnets.checkpoint.safetensors_file import CheckpointError
from icnets.checkpoint.safetensors_file import read as read_weights
from icnets.support.files import atomic_write
from icnets.training.run_checkpoints import read_checkpoint

__all__ = ["FINE", "Finding", "Outcome", "classify", "fuzz", "main"]

FINE = ("error", "named", "harmless", "valid")
OUT = Path(__file__).parent / "results" / "fuzz_inputs.jsonl"
_ERROR = "icnets: error: "
_MEMORY = 12 << 30  # bytes of addresses: an absurd size must not take the machine along


@dataclass(frozen=True)
class Outcome:
    """What a run came to: exit status (negative: a signal; None: the time limit), output, result."""

    status: int | None
    stdout: str
    stderr: str
    result: str


@dataclass(frozen=True)
class Finding:
    """One damaged file; ``outcome`` is one of ``FINE``, or the kind of failure."""

    number: int
    kind: str
    case: str
    file: str
    damage: str
    outcome: str
    message: str
    seconds: float


def _in_child(function: Callable[[], int], result: Callable[[], str], folder: Path, seconds: float) -> Outcome:
    """Runs both in ``folder`` in a process of its own: a fork, so that imports are paid for once."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(function, result, folder)
    end = time.monotonic() + seconds
    while (waited := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.02)
    status = os.waitstatus_to_exitcode(waited[1]) if waited[0] else None
    texts = {name: _text(folder / name) for name in ("stdout", "stderr", "result")}
    return Outcome(status, texts["stdout"], texts["stderr"], texts["result"])


def _child(function: Callable[[], int], result: Callable[[], str], folder: Path) -> None:
    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        sys.modules["__main__"] = ModuleType("__main__")  # or processes that are started anew import all of this again
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        os.environ |= {"ICNETS_CACHE": str(folder / "cache")}
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        status = function()
        sys.stdout.flush()
        if status in (0, 1):
            Path("result").write_text(result(), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _text(path: Path) -> str:
    """What is in a file, if it is there; without the folders of this machine, which are nobody's business."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return re.sub(rf"/\S*/site-packages/|{re.escape(tempfile.gettempdir())}/[^/\s'\"]+/", "", text)


def classify(outcome: Outcome, clean: Outcome, name: str, valid: bool, leftovers: Sequence[str]) -> tuple[str, str]:
    """Where a run belongs, and what it said.

    Args:
        outcome: of the damaged file.
        clean: of the whole one.
        name: of the file; empty where an error need not say it.
        valid: nobody can find fault with the damaged file.
        leftovers: files that were left half-written.
    """
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if outcome.status is None:
        return "hang", last
    if outcome.status < 0:
        return f"signal {-outcome.status}", last
    if "Traceback" in outcome.stderr or outcome.status not in (0, 1, 2):
        return "traceback", last
    if leftovers:
        return "half-written", ", ".join(leftovers)
    if outcome.status == 2:
        notices = [line for line in lines[:-1] if not _is_notice(line)]
        if notices or not last.startswith(_ERROR):
            return "several lines", " | ".join(lines)
        return ("error" if name in last and not last.endswith(":") else "doesn't say where"), last
    listed = set(outcome.stdout.splitlines()) - set(clean.stdout.splitlines())
    if name and any(name in text for text in [*listed, *filter(_is_notice, lines)]):
        return "named", lines[-1] if lines else ""
    if (outcome.status, outcome.result) == (clean.status, clean.result):
        return "harmless", ""
    return ("valid" if valid else "differs"), last


def _is_notice(line: str) -> bool:
    return line.endswith("; it is skipped") or "; going on from " in line


def _leftovers(folder: Path) -> list[str]:
    """New files that aren't whole."""
    found = list(folder.rglob("*.tmp"))
    for path in (folder / "runs" / "new").rglob("*"):
        try:
            if path.suffix == ".ckpt":
                read_checkpoint(path)
            elif path.suffix == ".safetensors":
                read_weights(path)
        except (ValueError, CheckpointError):
            found.append(path)
    return [str(path.relative_to(folder)) for path in found]


def _damage(case: Case, folder: Path, rng: np.random.Generator) -> tuple[Path, str, bool]:
    """Damages a file of ``folder``: which, how in words, and whether nobody can find fault with it."""
    files = sorted(path for pattern in case.files for path in folder.glob(pattern))
    path = files[int(rng.integers(len(files)))]
    whole = path.read_bytes()
    others = [other for other in files if other != path and other.suffix == path.suffix]
    if others and rng.random() < 0.1:
        other = others[int(rng.integers(len(others)))]
        path.write_bytes(other.read_bytes()), other.write_bytes(whole)
        return path, f"swapped with {other.relative_to(folder)}", True
    kinds = BYTES | (STRUCTURE if path.suffix == ".yaml" else {})
    weights = [1 if name == "empty" else 4 for name in BYTES] + [8] * (len(kinds) - len(BYTES))
    name = str(rng.choice(list(kinds), p=np.array(weights) / sum(weights)))
    damaged, words = kinds[name](rng, whole)
    path.write_bytes(damaged)
    return path, f"{name}: {words}", case.valid(whole, damaged)


class Fuzz:
    """Files that are whole, in a folder, and what each case makes of them."""

    def __init__(self, folder: Path, seed: int, seconds: float) -> None:
        self.folder, self.seed, self.seconds = folder, seed, seconds
        self.whole = folder / "whole"
        self.whole.mkdir()

        def nothing() -> str:
            return ""

        def make() -> int:
            prepare(self.whole)
            return 0

        made = _in_child(make, nothing, self.whole, 600)
        if made.status != 0:
            raise RuntimeError(f"the files couldn't be made:\n{made.stderr}")
        self._clean: dict[tuple[str, str], Outcome] = {}

    def clean(self, case: Case) -> Outcome:
        """What whole files come to."""
        key = case.kind, case.name
        if key not in self._clean:
            self._clean[key] = outcome = self._run(case, self._copy())
            if outcome.status != 0:
                raise RuntimeError(f"{case.kind}, {case.name} fails with whole files:\n{outcome.stderr}")
        return self._clean[key]

    def _copy(self) -> Path:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self.whole, copy, ignore=shutil.ignore_patterns("std*", "result", "tensorboard")))

    def _run(self, case: Case, copy: Path) -> Outcome:
        return _in_child(case.run, case.result, copy, self.seconds)

    def one(self, number: int) -> tuple[Finding, Outcome]:
        """Damage number so many, from 0."""
        case = _case(number)
        clean = self.clean(case)
        copy = self._copy()
        path, words, valid = _damage(case, copy, np.random.default_rng((self.seed, number)))
        start = time.monotonic()
        outcome = self._run(case, copy)
        seconds = time.monotonic() - start
        name = "" if path.suffix == ".yaml" else path.name
        found, message = classify(outcome, clean, name, valid, _leftovers(copy))
        message = message.replace(str(copy), ".")[:400]
        where = str(path.relative_to(copy))
        return Finding(number, case.kind, case.name, where, words, found, message, round(seconds, 2)), outcome


def _case(number: int) -> Case:
    """Every kind of file in turn, and of each kind every way in."""
    kinds = list(dict.fromkeys(case.kind for case in CASES))
    ways = [case for case in CASES if case.kind == kinds[number % len(kinds)]]
    return ways[number // len(kinds) % len(ways)]


def fuzz(folder: Path, numbers: Sequence[int], seed: int = 0, seconds: float = 90) -> list[Finding]:
    """Damages files in ``folder``, which is empty, once for each number."""
    fuzzer = Fuzz(folder, seed, seconds)
    findings = []
    for number in numbers:
        finding, outcome = fuzzer.one(number)
        findings.append(finding)
        if finding.outcome not in FINE:
            print(f"{finding.number}: {finding.outcome}: {finding.kind}, {finding.case}: {finding.file}: "
                  f"{finding.damage}: {finding.message}", flush=True)  # fmt: skip
        if len(numbers) == 1:
            print(f"status {outcome.status}\n{outcome.stdout}\n{outcome.stderr}\n{finding}")
    return findings


def table(findings: Sequence[Finding]) -> str:
    """Counts by kind and outcome."""
    counts = Counter((finding.kind, finding.outcome) for finding in findings)
    kinds = list(dict.fromkeys(finding.kind for finding in findings))
    outcomes = [*FINE, *sorted({finding.outcome for finding in findings} - set(FINE))]
    rows = [["", *outcomes, "all"]]
    rows += [[k, *(str(counts[k, o]) for o in outcomes), str(sum(counts[k, o] for o in outcomes))] for k in kinds]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=90, help="time limit of a run")
    parser.add_argument("--only", type=int, help="number of the one to run; nothing is written")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    numbers = range(args.count) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as folder:
        findings = fuzz(Path(folder), numbers, args.seed, args.seconds)
    print(table(findings))
    if args.only is None:
        with atomic_write(args.out) as temporary:
            lines = (json.dumps({"seed": args.seed, **asdict(finding)}) + "\n" for finding in findings)
            temporary.write_text("".join(lines), encoding="utf-8")
    return int(any(finding.outcome not in FINE for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
