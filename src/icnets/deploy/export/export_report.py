"""What an export says of itself."""

from dataclasses import dataclass
from pathlib import Path

from icnets.deploy.export.parity import Agreement, Parity


@dataclass(frozen=True)
class ExportReport:
    """An artifact that was reloaded by its engine and compared with PyTorch.

    ``parity`` holds the comparisons of the artifact in float32 with the network that was given. With ``int8`` the file
    at ``path`` is the quantised artifact; ``int8_parity`` is its own distance, and ``agreement`` what it does to
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
        size = f"{self.size / 1e6:.2f} MB, reloaded by {self.engine}"
        allowed = f" (allowed: {self.tolerance:g} of it)"
        lines = [f"{self.path}: {kind}, {size}", _errors("largest error to PyTorch", self.parity, allowed)]
        lines += [_errors("int8: largest error", self.int8_parity)] if self.int8 else []
        lines += [f"int8: {self.agreement}"] if self.agreement is not None else []
        return "\n".join(lines)


def _errors(what: str, parity: tuple[Parity, ...], allowed: str = "") -> str:
    absolute, relative = (max(getattr(p, name) for p in parity) for name in ("absolute", "relative"))
    batches = ", ".join(f"{p.batch} {p.inputs}" for p in parity)
    return f"{what}: {absolute:.2g}, {relative:.2g} of the output's range{allowed}; batches: {batches}"
