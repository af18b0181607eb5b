"""Tells from outside what a training is at: a callback that notes it in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

__all__ = ["Phases"]


class Phases(Callback):
    """Keeps ``path`` at what the training does (step, save, validation, epoch-end, end) and its optimizer step."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: int | None = None

    def _note(self, trainer: Any, phase: str) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(self._file, f"{phase:<10} {trainer.global_step:09d}".encode(), 0)

    @staticmethod
    def read(path: Path) -> tuple[str, int]:
        """Phase and step; "start" before the first step."""
        words = path.read_text().split() if path.exists() else []
        return (words[0], int(words[1])) if len(words) == 2 else ("start", 0)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._note(trainer, "step")

    def on_validation_start(self, trainer: Any, *args: Any) -> None:
        self._note(trainer, "validation")

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self._note(trainer, "epoch-end")

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        self._note(trainer, "save")

    def on_train_end(self, trainer: Any, *args: Any) -> None:
        self._note(trainer, "end")
