"""One HTML file from what a report has to say; everything that comes from files or users is escaped."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from icnets.report.figures import Figure
from icnets.report.pictures import Confusion, Disagreement

__all__ = ["ComparisonPart", "TrainingPart", "render"]


@dataclass
class Looks:
    """Sections that need the images and the trained networks; ``missing``: why there are none."""

    method: str = ""
    control: str = ""
    seed: int = 0
    images: int = 0
    missing: str | None = None
    confusion: Figure | None = None
    confusions: list[Confusion] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    layers: list[Figure] = field(default_factory=list)


@dataclass
class ComparisonPart:
    """What the page says of a comparison; tables are columns and rows of text, pictures data URIs."""

    title: str
    verdicts: list[str]
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    curves: list[Figure]
    costs: list[Figure]
    looks: Looks
    boundary: str | None
    facts: list[tuple[str, str]]
    command: str
    settings: str


@dataclass
class TrainingPart:
    """What the page says of a single training."""

    title: str
    summary: str
    curves: list[Figure]
    columns: list[str]
    rows: list[list[str]]
    settings: str


def render(title: str, comparisons: list[ComparisonPart], trainings: list[TrainingPart], made: str) -> str:
    """The page. ``made``: with what and when; plain text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = lambda figure: Markup(figure.markup)  # made by figures.draw, which escapes text
    template = files("icnets.report").joinpath("page.html").read_text(encoding="utf-8")
    page: Any = environment.from_string(template)
    text: str = page.render(title=title, comparisons=comparisons, trainings=trainings, made=made)
    return text
