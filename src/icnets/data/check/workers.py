"""A function over many items in several processes, one of which may die without taking the others' work along."""

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from icnets.support.processes import end_with_parent

__all__ = ["each"]

T = TypeVar("T")
R = TypeVar("R")

_LARGEST_CHUNK = 32


def each(function: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[tuple[int, R | None]]:
    """(index, result) of every item, in whatever order they are done.

    The result is None where the process died: of the items that were under way then, each is tried once more alone.

    Args:
        function: can be pickled, and returns something else than None.
        items: what it is called with, one by one.
        workers: number of processes, at least 1.
    """
    size = max(1, min(_LARGEST_CHUNK, len(items) // (4 * workers)))
    todo = deque(range(start, min(start + size, len(items))) for start in range(0, len(items), size))
    while todo:
        running: dict[Future[list[R]], range] = {}
        try:
            with _pool(min(workers, len(todo))) as pool:
                yield from _in_pool(pool, function, items, todo, running, 2 * workers)
        except BrokenProcessPool:
            for chunk in sorted(running.values(), key=lambda chunk: chunk.start):
                yield from _one_by_one(function, items, chunk)


def _in_pool(
    pool: ProcessPoolExecutor,
    function: Callable[[T], R],
    items: Sequence[T],
    todo: deque[range],
    running: dict[Future[list[R]], range],
    ahead: int,
) -> Iterator[tuple[int, R]]:
    while todo or running:
        while todo and len(running) < ahead:
            with _uninterrupted():  # a worker that is being started while the pool ends would complain
                running[pool.submit(_map, function, [items[i] for i in todo[0]])] = todo[0]
            todo.popleft()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            results = future.result()
            yield from zip(running.pop(future), results, strict=True)


def _one_by_one(function: Callable[[T], R], items: Sequence[T], chunk: range) -> Iterator[tuple[int, R | None]]:
    waiting = deque(chunk)
    while waiting:
        try:
            with _pool(1) as pool:
                while waiting:
                    yield waiting[0], pool.submit(function, items[waiting[0]]).result()
                    waiting.popleft()
        except BrokenProcessPool:
            yield waiting.popleft(), None


def _map(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, _context(), initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    # Not fork: it would copy the threads of torch and of the progress bar in whatever state they are.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["icnets.data.check.tar_files"])  # what imports take long is imported once
    resource_tracker.ensure_running()  # starting it unblocks SIGINT, so before that is blocked
    # Ctrl-C is the parent's: one that hits the server while it imports would leave nobody to start the workers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # it and its workers inherit the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off to the end; where that is another thread's or ignored, nothing is put off."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends us when we are idle
    end_with_parent()
