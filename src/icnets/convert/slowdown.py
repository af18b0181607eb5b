"""How many IC units fit a budget of time: whole networks are measured, in the engine that will run them.

Layers are ranked by what a unit adds to them, as far as counting shows it; a search over the first so many finds how
many fit. That is not left to the counts: what is told of time was measured, in rounds beside the basic network.
"""

import bisect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icnets.convert.config import ICConfig
from icnets.deploy.export.core import runner_of
from icnets.support.hooks import undisturbed, watched
from icnets.support.rounds import Ratio, interleaved, paired_ratio, step_of
from icnets.support.text import counted, first_line
from icnets.unit.layers import ic_parameters

Trial = Callable[[Sequence[str]], nn.Module]  # a copy of the network in which the layers of these names are IC units

_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
_ROUNDS = (11, 61)  # of one measurement
_SECONDS = 8.0  # that a measurement takes where the least number of rounds allows it
_TRIALS = 8  # of the search; after it, what it found is measured anew


@dataclass(frozen=True)
class Slowdown:
    """Time of a network beside that of its basic network, as it was measured for a budget.

    ``ratio``: median and quartiles over ``rounds``, each of which timed both on a batch of ``batch``. ``engine``: as
    in :class:`ICConfig`. ``networks``: how many were measured on the way, in ``seconds`` altogether.
    """

    limit: float
    engine: str
    ratio: Ratio
    rounds: int
    batch: int
    threads: int
    networks: int
    seconds: float

    def __str__(self) -> str:
        r, of = self.ratio, f"batch {self.batch}, {counted(self.threads, 'thread')}, {counted(self.rounds, 'round')}"
        found = f"x{r.median:.3f} [{r.low:.3f}, {r.high:.3f}] of the basic network's time ({self.engine}, {of})"
        return f"{found}; allowed x{self.limit:g}; {counted(self.networks, 'network')} measured in {self.seconds:.0f} s"


def beyond(config: ICConfig) -> str:
    """Why a layer stays basic that the budget of ``config`` has no time for."""
    return f"beyond max_slowdown={config.max_slowdown:g} ({config.engine})"


def within(
    trial: Trial,
    presets: Iterable[Mapping[str, nn.Module]],
    layers: Mapping[str, nn.Module],
    config: ICConfig,
    example: Tensor,
) -> tuple[tuple[str, ...], Slowdown]:
    """Chooses which of ``layers`` become IC units, so that the network stays within ``config.max_slowdown``.

    Args:
        trial: converts a copy; the network itself isn't touched.
        presets: other choices of layers; one that fits and has more of them is taken.
        layers: of the network, by name.
        config: the limit and the engine.
        example: batch (N, C, *L) whose time counts.

    Returns:
        The names, in the order of the network, and what was measured for them.

    Raises:
        ValueError: not even one unit fits, or the network can't take the example or be run by the engine.
    """
    assert config.max_slowdown is not None
    begun, cost = time.monotonic(), _costs(trial(()), layers, example)
    ranked = sorted(layers, key=cost.__getitem__)
    with undisturbed(nn.Module()), torch._dynamo.config.patch(recompile_limit=64):
        timing = Timing(trial, config.engine, example)
        count, found = _search(timing, ranked, cost, config.max_slowdown)
        names = set(ranked[:count])
        for preset in sorted((p.keys() & layers.keys() for p in presets), key=len, reverse=True):
            if len(preset) > len(names) and (other := timing(preset, longer=2))[0].median <= config.max_slowdown:
                names, found = set(preset), other
    ratio, rounds = found
    if not names:
        what = f"no IC unit fits max_slowdown={config.max_slowdown:g} in {config.engine}"
        raise ValueError(f"{what}: with the cheapest alone, the network takes x{ratio.median:.3f}; allow more")
    about = (rounds, len(example), torch.get_num_threads(), timing.networks, time.monotonic() - begun)
    return tuple(n for n in layers if n in names), Slowdown(config.max_slowdown, config.engine, ratio, *about)


def _costs(network: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> dict[str, float]:
    """What a unit adds to each layer, about: the elements it reads and writes, and the window sums of its groups."""
    modules = {network.get_submodule(name): name for name in layers}
    cost = dict.fromkeys(layers, 0.0)

    def see(module: Any, x: Tensor, z: Tensor) -> None:
        window, places = math.prod(getattr(module, "kernel_size", ())), z.numel() / max(z.shape[1], 1)
        cost[modules[module]] += (
            x.numel() + 2 * z.numel() + (window > 1) * window * getattr(module, "groups", 1) * places
        )

    with watched(modules, see), undisturbed(network), torch.no_grad():
        try:
            network(example)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            what = f"{type(network).__name__} can't take example_input, of shape {tuple(example.shape)}"
            raise ValueError(f"{what}: {first_line(error)}; give another") from error
    return cost


class Timing:
    """Measures networks beside the basic one, which is opened once."""

    def __init__(self, trial: Trial, engine: str, example: Tensor) -> None:
        self._trial, self._engine, self._example = trial, engine, example
        self.networks, self._basic = 0, self._opened(())

    def _opened(self, names: Iterable[str]) -> Callable[[], Any]:
        network: Any = self._trial(tuple(names))
        x, engine = self._example, self._engine
        with torch.no_grad():
            for _, parameter in ic_parameters(network):  # as after training: a silent unit would cost nothing
                parameter.add_(0.01 * torch.rand_like(parameter) + 0.001)
        if engine in _FORMATS:
            runner, x = runner_of(network, x, _FORMATS[engine]), x.cpu()
            return lambda: runner(x)
        if engine == "compile":
            network = torch.compile(network.eval(), dynamic=False)
        step = step_of(network, x, training=engine == "training")
        try:
            step()
        except Exception as error:  # torch.compile raises whatever it runs into
            what = f"{engine} can't run the network on example_input, of shape {tuple(x.shape)}"
            raise ValueError(f"{what}: {first_line(error)}; give another, or choose another engine") from error
        return step

    def __call__(self, names: Iterable[str], longer: int = 1) -> tuple[Ratio, int]:
        """The ratio of the network with these units to the basic one, and in how many rounds it was measured."""
        steps = {"basic": self._basic, "ic": self._opened(names)}
        self.networks += 1
        for step in steps.values():
            step()
        begun = time.perf_counter()
        for step in steps.values():
            step()
        once = max(time.perf_counter() - begun, 0.05)
        rounds = longer * round(min(max(_SECONDS / once, _ROUNDS[0]), _ROUNDS[1]))
        times = interleaved(steps, rounds, 0.025, self._example.device)
        return paired_ratio(times["ic"], times["basic"]), rounds


def _search(
    timing: Timing, ranked: Sequence[str], cost: Mapping[str, float], limit: float
) -> tuple[int, tuple[Ratio, int]]:
    """How many of the first layers fit the limit, and what was measured for them; 0: none, measured for one."""
    total = list(itertools.accumulate((cost[name] for name in ranked), initial=0.0))
    low, high = (0, 1.0), (len(ranked), timing(ranked)[0].median)

    def guess(low: tuple[int, float], high: tuple[int, float]) -> int:
        """Where the limit lies between two, if time goes with the counts."""
        share = (limit - low[1]) / max(high[1] - low[1], 1e-9)
        return bisect.bisect(total, total[low[0]] + share * (total[high[0]] - total[low[0]])) - 1

    if high[1] <= limit:
        low = high
    for _ in range(_TRIALS):
        if high[0] - low[0] <= max(1, len(ranked) // 32):
            break
        count = min(max(guess(low, high), low[0] + 1), high[0] - 1)
        tried = (count, timing(ranked[:count])[0].median)
        low, high = (tried, high) if tried[1] <= limit else (low, tried)
    count = low[0] or 1
    while (found := timing(ranked[:count], longer=2))[0].median > limit:  # the search keeps what chance favoured
        if count == 1:
            return 0, found
        count = min(max(guess((0, 1.0), (count, found[0].median)), 1), math.floor(0.95 * count))
    return count, found
