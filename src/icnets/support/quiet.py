"""Silence for what Lightning says in every run and nobody can act on: advertising, and remarks on our own choices."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_HARMLESS = [
    r".*does not have many workers",  # small images are read faster in the main process
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the teacher
    r"Checkpoint directory .* exists and is not empty",  # a run that is resumed
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the data module goes on where it was
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Experiment logs directory .* exists and is not empty",
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # test needs none of fit's
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",  # float16 skips steps at first
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"(?s).*does not have a deterministic implementation, but you set 'torch\.use_deterministic_algorithms",
]


def quiet() -> None:
    """Drops Lightning's notices below a warning, and the warnings listed here; all others stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls that Lightning makes
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def silence() -> AbstractContextManager[None]:
    """Hides all warnings, and what Lightning and we log below an error, for a while: for one of many runs in a row."""
    return muted(logging.ERROR, "lightning.pytorch", "lightning.fabric", "icnets")


@contextmanager
def muted(level: int, *names: str) -> Iterator[None]:
    """Hides all warnings, and what the loggers ``names`` say below ``level``, for a while; errors are still raised."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
