"""What an export says of itself."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExportReport", "Parity"]


@dataclass(frozen=True)
class Parity:
    """The artefact beside PyTorch on one batch: ``inputs`` is "random" or "real", ``batch`` the number of images.

    ``absolute`` is the largest difference of an output; ``relative`` is that difference divided by the range (largest
    minus smallest value) of the output it is in.
    """

    inputs: str
    batch: int
    absolute: float
    relative: float


@dataclass(frozen=True)
class Agreement:
    """Both networks on the same images: parts of 1. Accuracies are None for images without labels."""

    images: int
    same_class: float
    accuracy_before: float | None
    accuracy_after: float | None

    @property
    def loss(self) -> float:
        """Accuracy lost; without labels, the part of the images that changed their class."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return 1 - self.same_class
        return self.accuracy_before - self.accuracy_after

    def __str__(self) -> str:
        changed = f"{1 - self.same_class:.2%} of {self.images} images changed their class"
        if self.accuracy_before is None or self.accuracy_after is None:
            return changed
        return (
            f"accuracy {self.accuracy_before:.2%} before, {self.accuracy_after:.2%} after "
            f"({100 * (self.accuracy_after - self.accuracy_before):+.2f} pp); {changed}"
        )


@dataclass(frozen=True)
class ExportReport:
    """An artefact that was reloaded by its engine and compared with PyTorch.

    ``parity`` holds the comparisons of the artefact in float32 with the network that was given. With ``int8`` the file
    at ``path`` is the quantised artefact; ``int8_parity`` is its own distance, and ``agreement`` what it does to
    classes and accuracy (None for networks that aren't classifiers).
    """

    path: Path
    format: str
    engine: str
    size: int
    fused: bool
    tolerance: float
    parity: tuple[Parity, ...]
    int8: bool = False
    int8_parity: tuple[Parity, ...] = ()
    agreement: Agreement | None = None

    @property
    def max_error(self) -> float:
        """Largest absolute error in float32."""
        return max(p.absolute for p in self.parity)

    @property
    def max_relative_error(self) -> float:
        """Largest error in float32 relative to the output's range: what ``tolerance`` bounds."""
        return max(p.relative for p in self.parity)

    def __str__(self) -> str:
        kind = f"{self.format}, {'int8' if self.int8 else 'float32'}{', fused' if self.fused else ''}"
        lines = [
            f"{self.path}: {kind}, {self.size / 1e6:.2f} MB, reloaded by {self.engine}",
            f"largest error to PyTorch: {self.max_error:.2g}, {self.max_relative_error:.2g} of the output's range "
            f"(allowed: {self.tolerance:g} of it); batches: {_batches(self.parity)}",
        ]
        if self.int8:
            worst = max(self.int8_parity, key=lambda p: p.relative)
            lines.append(
                f"int8: largest error {worst.absolute:.2g}, {worst.relative:.2g} of the output's range; "
                f"batches: {_batches(self.int8_parity)}"
            )
        if self.agreement is not None:
            lines.append(f"int8: {self.agreement}")
        return "\n".join(lines)


def _batches(parity: tuple[Parity, ...]) -> str:
    return ", ".join(f"{p.batch} {p.inputs}" for p in parity)
