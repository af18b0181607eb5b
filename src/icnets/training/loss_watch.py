"""Stops a training whose loss is no number any more, or runs away, and says where that began."""

from collections.abc import Sequence

import torch
from torch import Tensor

from icnets.support.text import few

__all__ = ["LossWatch"]

_EVERY = 20  # steps between looks on a GPU, where each look waits for the queue
_MEMORY = 0.95  # of the running mean, per step
_FACTOR = 3.0  # a running mean beyond so many times the start is no training


class LossWatch:
    """Watches the losses of a training, step by step, without waiting for the device each time.

    Args:
        chance: a loss that is no worse than guessing, in the loss's own unit (nats); a run begins somewhere there.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self._limit: Tensor | None = None
        self._mean: Tensor | None = None
        self._bad: Tensor | None = None
        self._seen: list[tuple[int, int, int]] = []  # step, epoch and batch since the last look

    def update(self, loss: Tensor, step: int, epoch: int, batch: int) -> tuple[int, int, int, str] | None:
        """Takes in the loss of a step; where it or one before is bad: step, epoch and batch of the first, and why."""
        loss = loss.detach().float()
        if self._mean is None or self._limit is None:
            self._mean, self._limit = loss.clone(), _FACTOR * torch.clamp(loss, min=self.chance)
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        position = torch.full_like(loss, len(self._seen))
        none = torch.full_like(loss, torch.inf)
        now = torch.where(torch.isfinite(loss) & (self._mean <= self._limit), none, position)
        self._bad = now if self._bad is None else torch.minimum(self._bad, now)
        self._seen.append((step, epoch, batch))
        if loss.device.type != "cpu" and len(self._seen) < _EVERY:
            return None
        return self.look(loss)

    def look(self, loss: Tensor | None = None) -> tuple[int, int, int, str] | None:
        """Waits for the device, and says what ``update`` says."""
        if self._bad is None or self._mean is None or self._limit is None:
            return None
        bad, self._bad = float(self._bad), None
        seen, self._seen = self._seen, []
        if bad == torch.inf:
            return None
        mean, limit = float(self._mean), float(self._limit)
        if torch.isfinite(self._mean):
            return (*seen[int(bad)], f"the loss has run away: its running mean is {mean:.4g}, beyond {limit:.4g}")
        value = "" if loss is None or torch.isfinite(loss) else f" ({float(loss)})"
        return (*seen[int(bad)], f"the loss is no finite number{value}")


def explain(found: tuple[int, int, int, str], images: Sequence[str], checkpoint: str | None) -> str:
    """The message for what ``update`` found: why, where, which images, and from where to go on."""
    step, epoch, batch, why = found
    parts = [f"{why} at step {step} (epoch {epoch}, batch {batch})"]
    if images:
        parts.append(f"its images: {few(images, 8)}")
    parts.append(f"last good checkpoint: {checkpoint}" if checkpoint else "no checkpoint was saved before")
    return "; ".join(parts) + ". Lower lr, lengthen warmup, or check the images' values"
