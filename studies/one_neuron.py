"""One IC neuron against one plain neuron where a single line is not enough: XOR and two moons.

That one IC neuron solves XOR follows from the paper's formula (arXiv 2011.11271).

python studies/one_neuron.py            # draws docs/images/decision_boundary.png anew
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icnets.support.files import atomic_write
from icnets.unit.layers import ICLinear

__all__ = ["Fit", "boundary_experiment", "fit_neuron", "plot_boundaries", "two_moons", "xor"]


@dataclass(frozen=True)
class Fit:
    """A trained neuron: ``(N, 2)`` to ``(N, 1)``, its accuracy in [0, 1] and its mean logistic loss in nats.

    Class 1 is where the output times ``sign`` is positive.
    """

    neuron: nn.Module
    sign: int
    accuracy: float
    loss: float

    def classify(self, points: Tensor) -> Tensor:
        """Classes of ``points`` ``(N, 2)``: bool ``(N,)``."""
        with torch.no_grad():
            return self.sign * self.neuron(points).squeeze(1) > 0


def xor() -> tuple[Tensor, Tensor]:
    """The four points of XOR, float32 ``(4, 2)`` in {0, 1}, and their targets ``(4,)`` in {0, 1}."""
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return points, torch.tensor([0.0, 1.0, 1.0, 0.0])


def two_moons(samples: int = 200, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's two interleaved half circles: float32 ``(samples, 2)`` and targets ``(samples,)`` in {0, 1}."""
    from sklearn.datasets import make_moons

    points, target = make_moons(n_samples=samples, noise=noise, random_state=seed)
    return torch.as_tensor(points, dtype=torch.float32), torch.as_tensor(target, dtype=torch.float32)


def fit_neuron(
    kind: str, points: Tensor, target: Tensor, *, restarts: int = 32, steps: int = 500, lr: float = 0.1
) -> Fit:
    """Trains one neuron by full-batch Adam on the logistic loss from several starts; the most accurate counts.

    For both kinds alike: starts are many, because an IC neuron whose branch never fires is a plain one, and half of
    them call the other class positive, because max(y, 2y − w's) is convex and can single out one side only.

    Args:
        kind: "plain" (``nn.Linear(2, 1)``) or "ic" (``ICLinear(2, 1)``).
        points: ``(N, 2)`` float; target: ``(N,)`` float in {0, 1}.
        restarts: how many starts for each of the two signs.

    Raises:
        ValueError: for another ``kind`` or fewer than 1 restart.
    """
    makers = {"plain": nn.Linear, "ic": ICLinear}
    if kind not in makers:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(makers)}")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; it must be at least 1")
    # Each output of a layer is a neuron of its own, with its own share of the loss: all starts train at once.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crowd: nn.Module = makers[kind](2, 2 * restarts)
        neuron: nn.Module = makers[kind](2, 1)
    signs = torch.ones(2 * restarts).index_fill_(0, torch.arange(restarts), -1.0)
    targets = target.unsqueeze(1).expand(-1, 2 * restarts)
    optimizer = torch.optim.Adam(crowd.parameters(), lr=lr)

    def losses() -> Tensor:
        return F.binary_cross_entropy_with_logits(signs * crowd(points), targets, reduction="none").mean(0)

    for _ in range(steps):
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    with torch.no_grad():
        right = ((signs * crowd(points) > 0) == (targets > 0.5)).float().mean(0)
        final = losses()
    best = max(range(2 * restarts), key=lambda i: (right[i].item(), -final[i].item()))
    neuron.load_state_dict({name: value[best : best + 1] for name, value in crowd.state_dict().items()})
    return Fit(neuron.eval(), int(signs[best]), right[best].item(), final[best].item())


def boundary_experiment() -> dict[str, dict[str, tuple[Tensor, Tensor, Fit]]]:
    """Both neurons on both tasks: task to kind ("plain", "ic") to (points, target, fit)."""
    tasks = {"XOR": xor(), "Two moons": two_moons()}
    return {
        task: {kind: (points, target, fit_neuron(kind, points, target)) for kind in ("plain", "ic")}
        for task, (points, target) in tasks.items()
    }


def plot_boundaries(results: Mapping[str, Mapping[str, tuple[Tensor, Tensor, Fit]]], path: Path) -> None:
    """Decision regions of a plain and an IC neuron, one row per task; PNG, written atomically.

    Args:
        results: what :func:`boundary_experiment` returns.
        path: of the picture, in a folder that exists.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap

    names = {"plain": "one plain neuron", "ic": "one IC neuron"}
    regions, dots = ListedColormap(["#CFE5F3", "#FBE3C0"]), ("#0072B2", "#D55E00")
    style: Any = {"font.size": 12, "axes.titlesize": 12, "figure.dpi": 150, "savefig.facecolor": "white"}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        rows = len(results)
        figure, axes = plt.subplots(rows, 2, figsize=(8, 3.9 * rows), layout="constrained", squeeze=False)
        for row, (task, fits) in zip(axes, results.items(), strict=True):
            for ax, (kind, (points, target, fit)) in zip(row, fits.items(), strict=True):
                low, high = points.min(0).values - 0.5, points.max(0).values + 0.5
                x, y = (torch.linspace(float(a), float(b), 300) for a, b in zip(low, high, strict=True))
                with torch.no_grad():
                    height = fit.sign * fit.neuron(torch.cartesian_prod(x, y)).reshape(300, 300).T
                ax.pcolormesh(x.numpy(), y.numpy(), (height > 0).int().numpy(), cmap=regions, rasterized=True)
                ax.contour(x.numpy(), y.numpy(), height.numpy(), levels=[0], colors="#444444", linewidths=1.2)
                size = 140 if len(points) < 10 else 22
                for label, marker in ((0, "o"), (1, "^")):
                    own = points[target == label]
                    ax.scatter(*own.T.numpy(), s=size, c=dots[label], marker=marker, edgecolors="white", linewidths=0.8)
                ax.set_title(f"{task}, {names[kind]}: {100 * fit.accuracy:.3g} % right")
                ax.set(aspect="equal", xticks=[], yticks=[])
        try:
            with atomic_write(path) as temporary:
                figure.savefig(
                    temporary, format="png", bbox_inches="tight", pad_inches=0.25, metadata={"Software": None}
                )
        finally:
            plt.close(figure)


if __name__ == "__main__":
    plot_boundaries(boundary_experiment(), Path(__file__).parents[1] / "docs" / "images" / "decision_boundary.png")
