"""The answer before any table: each claim with the differences that it is read off, study by study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evidence_page import verdict
from study_results import Cell, Results

__all__ = ["Claim", "answer"]


@dataclass(frozen=True)
class Claim:
    """What is asked, in bold, and the pairs of cells that answer it, read together in each study that has any."""

    text: str
    pairs: Sequence[tuple[Cell, Cell]]
    studies: tuple[str, ...]


def _line(claim: Claim, studies: Sequence[Results]) -> str:
    found = []
    for study in studies:
        if study.name not in claim.studies:
            continue
        told = zip(claim.pairs, study.family(claim.pairs), strict=True)
        found += [f"{study.name}: {verdict(study, *pair, c, [*pair])}" for pair, c in told if c is not None]
    return f"- **{claim.text}** {'; '.join(found) or 'not measured yet'}."


def answer(claims: Sequence[Claim], studies: Sequence[Results], advice: str) -> str:
    """The claims as a list, and the advice under them; differences are points of accuracy."""
    lines = [_line(claim, studies) for claim in claims]
    return "\n".join(["## The answer in ten lines", "", *lines, "", advice.strip()])
