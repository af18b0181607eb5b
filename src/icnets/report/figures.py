"""Figures as SVG inside a page: their ink follows the page's text colour, light or dark."""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from icnets.compare.plots import STYLE, new_figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: Any = {
    **STYLE,
    "font.size": 11,
    "axes.titlesize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "savefig.facecolor": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "font.sans-serif": ["sans-serif"],
}


@dataclass(frozen=True)
class Figure:
    """A picture for the page: markup that may be put in as it is, and words for who doesn't see it."""

    name: str
    markup: str
    alt: str
    caption: str


def draw(
    name: str, paint: Callable[[Any], None], *, alt: str, caption: str, size: tuple[float, float] = (5.2, 4.0)
) -> Figure:
    """A figure of one axes that ``paint`` fills.

    Args:
        name: a word.
        paint: gets matplotlib's axes; draws in :data:`INK` what is to have the page's text colour.
        alt: what the figure shows, in words; plain text.
        caption: below it; plain text.
        size: inches; narrow, so that a phone shows it legibly.
    """
    import logging

    from matplotlib import pyplot as plt
    from matplotlib import rc_context

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # "sans-serif" is the browser's to find
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure, axes = new_figure(figsize=size, layout="constrained")
        try:
            paint(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            plt.close(figure)
    return Figure(name, _inline(buffer.getvalue(), name), alt, caption)


def _inline(svg: str, name: str) -> str:
    """The <svg> element alone, its ids its own on the page, its size the page's to decide."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    own = f"{name}-{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"  # another run's figure has the same name
    svg = re.sub(r'\bid="', f'id="{own}', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{own}", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")
