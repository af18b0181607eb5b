"""A function over many items in several processes, one of which may die without taking the others' work along."""

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from typing import TypeVar

from icnets.support.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

_LARGEST_CHUNK = 32


def each(function: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[tuple[int, R | None]]:
    """Yield (index, result) of every item.

    The result is None where the process died: of the items that were under way then, each is tried once more alone.

    Args:
        function: can be pickled, and returns something else than None.
        items: what it is called with, one by one.
        workers: number of processes, at least 1.
    """
    size = max(1, min(_LARGEST_CHUNK, len(items) // (4 * workers)))
    chunks = [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]
    while chunks:
        chunks = yield from _in_pool(function, items, chunks, workers)
        # They are begun in order, so the one that killed its process is among the first.
        alone = [range(i, i + 1) for chunk in chunks[:workers] for i in chunk]
        while alone:
            alone = yield from _in_pool(function, items, alone, 1)
            if alone:
                yield alone.pop(0).start, None
        chunks = chunks[workers:]


def _in_pool(
    function: Callable[[T], R], items: Sequence[T], chunks: Sequence[range], workers: int
) -> Generator[tuple[int, R], None, list[range]]:
    """Yield results until a process dies; return the chunks that weren't done by then."""
    # Not fork: it would copy the threads of others in whatever state they are.
    pool = ProcessPoolExecutor(min(workers, len(chunks)), get_context("spawn"), initializer=end_with_parent)
    futures: list[Future[list[R]]] = []
    left = []
    try:
        with suppress(BrokenProcessPool), _interrupts_blocked():
            for chunk in chunks:
                futures.append(pool.submit(_map, function, [items[i] for i in chunk]))
        for chunk, future in zip(chunks, futures, strict=False):
            try:
                results = future.result()
            except BrokenProcessPool:
                left.append(chunk)
            else:
                yield from zip(chunk, results, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return [*left, *chunks[len(futures) :]]


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block; processes started in it leave Ctrl-C to this one for good."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it unblocks SIGINT, so before that is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _map(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]
