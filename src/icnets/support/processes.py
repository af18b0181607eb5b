"""What processes that work for another one have in common."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Called in a process of multiprocessing: it ends when its parent does, however that ends.

    A parent that was killed can't end its workers, and they'd wait for its orders for ever.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
