"""How far a comparison has come, and how long the rest takes: said once that can be known."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from icnets.comparison.planned_runs import Job
from icnets.comparison.runs import Run

_PATIENCE = 20.0  # seconds after which something is said, where the first run takes longer
_KNOWN = 0.5  # of the kinds of runs that must have been seen, where nothing was expected


class Progress:
    """Prints a line for every finished run, and one before if that takes long.

    The remaining time is reckoned from the seconds of finished runs: those of a method's own, or else what was expected
    of it, corrected by how right that was of others. It is said only where it can be trusted: after the first run that
    says how right what was expected is, or, without that, after runs of half of the methods.

    Args:
        jobs: to be done.
        workers: processes at work.
        expected: seconds of an epoch by method, such as a probe says; empty: nobody knows.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, expected: Mapping[str, float] | None = None) -> None:
        self.jobs, self.workers, self.expected = {job.id: job for job in jobs}, workers, expected or {}
        self.begun = dict.fromkeys(self.jobs, 0)  # epochs
        self.seconds: dict[str, list[float]] = {}  # of an epoch, by method
        self.done: set[str] = set()
        self.start, self.silent = time.monotonic(), True

    def epoch(self, job: str) -> None:
        """Hears of a finished epoch of the job with this id."""
        self.begun[job] += 1
        if self.silent and time.monotonic() - self.start >= _PATIENCE:
            epochs = sum(job.training.epochs for job in self.jobs.values())
            self._say(f"{sum(self.begun.values())} of {epochs} epochs of all runs")

    def finished(self, job: Job, run: Run, seconds: float) -> None:
        """Hears of a finished run, and the seconds that it took with everything."""
        self.done.add(job.id)
        self.seconds.setdefault(str(job.cell), []).append(seconds / job.training.epochs)
        number = f"[{len(self.done):>{len(str(len(self.jobs)))}}/{len(self.jobs)}]"
        self._say(f"{number} {run.method}, seed {run.seed}: error {run.error:.2f} % after {run.seconds:.0f} s")

    @property
    def left(self) -> float | None:
        """Seconds to go; None: nobody can know yet."""
        kinds = {str(job.cell) for job in self.jobs.values()}
        if not self.seconds or (not self.expected and len(self.seconds) < _KNOWN * len(kinds)):
            return None
        known = {kind: fmean(seconds) for kind, seconds in self.seconds.items()}
        if self.expected:
            right = sum(known.values()) / sum(self.expected[kind] for kind in known)
            known = {kind: right * seconds for kind, seconds in self.expected.items()} | known
        usual = fmean(known.values())
        rest = [
            known.get(str(job.cell), usual) * (job.training.epochs - self.begun[job.id])
            for job in self.jobs.values()
            if job.id not in self.done
        ]
        return max(sum(rest) / self.workers, max(rest, default=0.0))

    def _say(self, what: str) -> None:
        self.silent = False
        gone, left = time.monotonic() - self.start, self.left
        to_go = "" if left is None or not len(self.done) < len(self.jobs) else f", about {_clock(left)} to go"
        print(f"{what}; {_clock(gone)} gone{to_go}", flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
