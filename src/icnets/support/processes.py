"""What processes that work for another one have in common."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Makes the calling process of multiprocessing end when its parent does, however that ends.

    A parent that was killed can't end its workers, and they would wait for its orders forever.
    """

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
