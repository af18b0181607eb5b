"""Which image is read when, and by which process: a function of (seed, epoch) and nothing else.

An epoch is one order of all images, cut into global batches; of each, every process takes its part. So the number of
processes changes neither which images a step sees nor what they look like, and a training that was cut off resumes at
any batch of any epoch.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int, int]  # epoch, index of the image, and the number of its copy in repeated augmentation
PADDING = -1  # index of no image, which evens out the batches of several processes


@dataclass(eq=False)
class EpochBatches(Sampler[list[Key]]):
    """The batches of one process in a training epoch: lists of (epoch, index, copy).

    What is left of an epoch behind its last whole global batch is left out; what that is changes from epoch to epoch.

    Args:
        length: number of images.
        batch_size: images per step of one process.
        seed: of the order.
        position: tells, whenever an iteration begins, the epoch and the number of its first batch.
        rank, world: which process of how many.
        repeats: each drawn image comes so many times, in different processes where there are several (repeated
            augmentation, arXiv 1901.09335); an epoch keeps its length, and has fewer different images.
    """

    length: int
    batch_size: int
    seed: int
    position: Callable[[], tuple[int, int]]
    _: KW_ONLY
    rank: int = 0
    world: int = 1
    repeats: int = 1

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        yield from self._from(*self.position())  # asked for with the first batch: a loader makes iterators it drops

    def _from(self, epoch: int, first: int) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, epoch, self.length)).permutation(self.length)
        size = self.batch_size * self.world
        for start in range(first * size, len(self) * size, size):
            places = range(start + self.rank, start + size, self.world)
            yield [(epoch, int(order[i // self.repeats]), i % self.repeats) for i in places]

    def batch(self, epoch: int, batch: int) -> list[Key]:
        """Return what this process reads for a batch of an epoch."""
        return next(self._from(epoch, batch))


@dataclass(eq=False)
class EvaluationBatches(Sampler[list[int]]):
    """The batches of one process in an evaluation, by index: every image once over all processes, in a fixed order.

    All processes have equally many batches of equal size, since all processes compute in step; what is missing
    for that is ``PADDING``.
    """

    length: int
    batch_size: int
    _: KW_ONLY
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size * self.world
        for start in range(0, self.length, size):
            rows = -(-min(size, self.length - start) // self.world)
            places = range(start + self.rank, start + rows * self.world, self.world)
            yield [place if place < self.length else PADDING for place in places]
