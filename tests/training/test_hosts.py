"""Two hosts with their own addresses, one of which dies in the middle of an epoch and comes back."""

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from training.newest import weights_of

SOURCES = Path(__file__).parents[2] / "src"
OPTIONS = {
    "name": "pair", "ckpt_path": "auto", "save_every": 3, "seed_everything": 4, "trainer.max_epochs": 3,
    "trainer.strategy": "ddp", "trainer.devices": 1, "trainer.num_nodes": 2, "trainer.accelerator": "cpu",
    "trainer.logger": "false", "model.model": "resnet10t", "model.ic.layers": "all",
    "model.model_options": "{channels: [8, 8, 16, 16], stem_width: 8, drop_rate: 0.1}",
    "data.train_size": 160, "data.image_size": 16, "data.batch_size": 8,
}  # fmt: skip
STEPS = 10  # in an epoch


class Host:
    """Where a torchrun agent runs: a network namespace, or without one an address of the loopback device."""

    def __init__(self, address: str, device: str, first: str, namespace: str | None) -> None:
        self.prefix = [] if namespace is None else ["ip", "netns", "exec", namespace]
        self.address, self.device, self.first = address, device, first
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self, runs: Path, log: Path) -> None:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.first}:29500", "--rdzv-id", runs.name]
        agent = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *(*rendezvous, "--rdzv-conf", f"is_host={int(self.address == self.first)}"),
            *("--max-restarts", "3", "--local-addr", self.address),
        ]
        options = [part for name, value in {**OPTIONS, "runs": runs}.items() for part in (f"--{name}", str(value))]
        paths = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": self.device}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else an agent that comes back waits for an address
        command = [*self.prefix, *agent, "-m", "icnets.cli", "fit", *options]
        with open(log, "ab") as file:
            self.agent = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file)

    def kill(self) -> None:
        """The agent and its worker, at once."""
        if self.agent is None or self.agent.poll() is not None:
            return
        agent = psutil.Process(self.agent.pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.kill()
        self.agent.wait()

    def status(self) -> int:
        assert self.agent is not None
        return self.agent.wait(240)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def connect(names: list[str]) -> None:
    """Two namespaces, with a cable between them."""
    for name in names:
        ip("netns", "add", name)
    ends = [f"{name}-e" for name in names]
    ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
        ip("-n", name, "link", "set", end, "up")
        ip("-n", name, "link", "set", "lo", "up")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    names = [f"ic{os.getpid()}{letter}" for letter in "ab"]
    try:
        connect(names)
        found = [Host(f"10.77.0.{i}", f"{name}-e", "10.77.0.1", name) for i, name in enumerate(names, 1)]
    except (OSError, subprocess.CalledProcessError):  # no such program, or not permitted
        found = [Host(f"127.0.0.{i}", "lo", "127.0.0.1", None) for i in (1, 2)]
    yield found
    for host in found:
        host.kill()
    for name in names if found[0].prefix else []:
        ip("netns", "del", name)


def newest(runs: Path) -> int:
    return max((int(path.stem[5:]) for path in runs.glob("pair/checkpoints/step-*.ckpt")), default=0)


def start(hosts: list[Host], runs: Path) -> None:
    for number, host in enumerate(hosts):
        host.start(runs, runs.with_name(f"{runs.name}-{number}.log"))


def kill_second(hosts: list[Host], runs: Path) -> int:
    """Kills the second host within the second epoch, and starts it again; the newest checkpoint at that time."""
    until = time.monotonic() + 200
    while newest(runs) < STEPS + 2:
        assert time.monotonic() < until, "the training doesn't begin"
        time.sleep(0.01)
    hosts[1].kill()
    time.sleep(1)  # what the first host was writing
    step = newest(runs)
    hosts[1].start(runs, runs.with_name(f"{runs.name}-1.log"))
    return step


def lines(runs: Path, pattern: str) -> list[str]:
    """What the first process printed."""
    text = "".join(path.read_text() for path in sorted(runs.parent.glob(f"{runs.name}-*.log")))
    return re.findall(pattern, text, re.MULTILINE)


def history(runs: Path) -> list[dict[str, float]]:
    with open(runs / "pair" / "history.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_dies_and_comes_back(hosts: list[Host], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    start(hosts, whole)
    assert [host.status() for host in hosts] == [0, 0], lines(whole, r"^.*[Ee]rror.*$")
    assert not lines(whole, r"^going on")

    start(hosts, broken)
    step = kill_second(hosts, broken)
    assert [host.status() for host in hosts] == [0, 0], lines(broken, r"^.*[Ee]rror.*$")
    assert STEPS < step < 2 * STEPS  # it was within the second epoch
    assert lines(broken, r"^going on from .*step-(\d+)\.ckpt$") == [f"{step:09d}"]
    assert lines(broken, r"^epoch (\d)/3") == ["1", "2", "3"]
    rows = history(broken)
    assert [(row["epoch"], row["step"]) for row in rows] == [(epoch, epoch * STEPS) for epoch in (1, 2, 3)]
    for row, other in zip(rows, history(whole), strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-5)
    expected, found = (weights_of(runs / "pair" / "checkpoints") for runs in (whole, broken))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
