"""What processes that work for another one have in common."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Makes the calling process of multiprocessing end when its parent does, however that ends, and not by Ctrl-C.

    A parent that was killed can't end its workers, and they would wait for its orders forever. Ctrl-C reaches the
    parent too, which ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
